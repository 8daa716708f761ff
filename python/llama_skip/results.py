"""What a completion returns: the shapes of OpenAI's legacy completions, as in llama-cpp-python."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Literal, TypedDict

FinishReason = Literal["stop", "length"]


class CompletionChoice(TypedDict):
    """One generated text, or the next piece of it."""

    text: str
    index: int
    logprobs: None
    finish_reason: FinishReason | None


class CompletionUsage(TypedDict):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionChunk(TypedDict):
    """One item of a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]


class Completion(CompletionChunk):
    """A whole completion."""

    usage: CompletionUsage


def chunk_maker(model: str) -> Callable[[str, FinishReason | None], CompletionChunk]:
    """Return a function that makes the chunks of one completion, which share id and time."""
    completion_id = f"cmpl-{uuid.uuid4()}"
    created = int(time.time())

    def make(text: str, finish_reason: FinishReason | None) -> CompletionChunk:
        return {
            "id": completion_id,
            "object": "text_completion",
            "created": created,
            "model": model,
            "choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": finish_reason}],
        }

    return make
