"""Completions: from a prompt to OpenAI-shaped results, whole or as a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from llama_skip import _core
from llama_skip.history import History
from llama_skip.results import Completion, CompletionChunk, FinishReason, chunk_maker
from llama_skip.text import pieces


class Request(NamedTuple):
    """A checked completion request."""

    model: _core.Model
    history: History
    sampler: _core.Sampler
    prompt: list[int]
    n_max: int
    stop: list[bytes]
    echo: str
    name: str


def prompt_tokens(model: _core.Model, prompt: str | Sequence[int]) -> list[int]:
    """Return the tokens of a prompt: a text with the tokens the model wants around it, or tokens as they are.

    Raises:
        ValueError: no token at all.
    """
    if isinstance(prompt, str):
        text = model.tokenize(prompt.encode(), False, True) if prompt else []
        # an empty text begins with BOS even where the model does not ask for it
        before = [model.bos] if model.bos >= 0 and (model.add_bos or not text) else []
        tokens = before + text + ([model.eos] if model.add_eos else [])
    else:
        tokens = list(prompt)
    if not tokens:
        raise ValueError("prompt: empty")
    return tokens


def room(n_prompt: int, max_tokens: int | None, n_ctx: int) -> int:
    """Return how many tokens may be generated; None and numbers below 1 mean as many as fit.

    Raises:
        ValueError: the prompt does not fit.
    """
    if n_prompt >= n_ctx:
        raise ValueError(f"Requested tokens ({n_prompt}) exceed context window of {n_ctx}")
    n_room = n_ctx - n_prompt
    return n_room if max_tokens is None or max_tokens <= 0 else min(max_tokens, n_room)


def stream(request: Request) -> Iterator[CompletionChunk]:
    """Yield a completion in pieces, the prompt first if it is echoed; only the last has a finish_reason."""
    make = chunk_maker(request.name)
    if request.echo:
        yield make(request.echo, None)
    tokens = islice(request.history.generate(request.prompt, request.sampler), request.n_max)
    for text, reason in _pieces(request, tokens):
        yield make(text, reason)


def whole(request: Request) -> Completion:
    """Return a completion when it has ended; nothing else uses the context meanwhile."""
    generated: list[int] = []

    def record(tokens: Iterator[int]) -> Iterator[int]:
        for token in tokens:
            if not request.model.is_eog(token):
                generated.append(token)
            yield token

    with request.history.lock:
        tokens = islice(request.history.generate(request.prompt, request.sampler), request.n_max)
        parts = list(_pieces(request, record(tokens)))
    text = request.echo + "".join(piece for piece, _ in parts)
    return {
        **chunk_maker(request.name)(text, parts[-1][1]),
        "usage": {
            "prompt_tokens": len(request.prompt),
            "completion_tokens": len(generated),
            "total_tokens": len(request.prompt) + len(generated),
        },
    }


def _pieces(request: Request, tokens: Iterator[int]) -> Iterator[tuple[str, FinishReason | None]]:
    model = request.model
    return pieces(
        tokens,
        is_end=model.is_eog,
        to_bytes=lambda token: model.detokenize([token], False),
        stop=request.stop,
    )
