"""What calls return: OpenAI's shapes, as in llama-cpp-python."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any, Literal, TypedDict

FinishReason = Literal["stop", "length"]


class CompletionLogprobs(TypedDict):
    """One entry a token: text, where it begins, log-probability in nats, and the most probable tokens.

    The entries of the first token of an echoed prompt are None.
    """

    tokens: list[str]
    text_offset: list[int]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(TypedDict):
    """One generated text, or the next piece of it."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None
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


class ChatCompletionChoice(TypedDict):
    """An answer: `message` has role and content, and tool_calls or reasoning_content where there are any."""

    index: int
    message: dict[str, Any]
    logprobs: dict[str, Any] | None
    finish_reason: str


class ChatCompletion(TypedDict):
    """A whole answer to messages."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatCompletionChoice]
    usage: CompletionUsage


class ChatCompletionChunkChoice(TypedDict):
    """What an answer grows by: `delta` is empty in the last one, which has the finish_reason."""

    index: int
    delta: dict[str, Any]
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class ChatCompletionChunk(TypedDict):
    """One item of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatCompletionChunkChoice]


class Embedding(TypedDict):
    """The embedding of one text: [n_embd], or without pooling [n_tokens][n_embd]."""

    object: Literal["embedding"]
    embedding: list[float] | list[list[float]]
    index: int


class EmbeddingUsage(TypedDict):
    """Counts of tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(TypedDict):
    """The embeddings of texts, in their order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


def chunk_maker(
    model: str,
) -> Callable[[str, CompletionLogprobs | None, FinishReason | None], CompletionChunk]:
    """Return a function that makes the chunks of one completion, which share id and time."""
    completion_id = f"cmpl-{uuid.uuid4()}"
    created = int(time.time())

    def make(
        text: str, logprobs: CompletionLogprobs | None, finish_reason: FinishReason | None
    ) -> CompletionChunk:
        return {
            "id": completion_id,
            "object": "text_completion",
            "created": created,
            "model": model,
            "choices": [{"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish_reason}],
        }

    return make


def usage(n_prompt: int, n_generated: int) -> CompletionUsage:
    """Return the counts of one generation."""
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_generated,
        "total_tokens": n_prompt + n_generated,
    }
