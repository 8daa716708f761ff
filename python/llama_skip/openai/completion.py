"""Completions: from a prompt to OpenAI-shaped results, whole or as a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from llama_skip import _core
from llama_skip.model.depth import IN_FORCE, Depth
from llama_skip.model.history import History
from llama_skip.model.sampling import Chooser, TokenLogprobs, token_logprobs
from llama_skip.openai.pieces import Piece, pieces
from llama_skip.openai.results import Completion, CompletionChunk, CompletionLogprobs, chunk_maker, usage


class Request(NamedTuple):
    """A checked request.

    Attributes:
        model, history, chooser: what generates.
        prompt: its tokens.
        n_max: most tokens to generate.
        stop: texts that end it.
        preserved: control tokens that are written as text.
        echo: what the text begins with.
        n_echo: how many characters lie before the generated text, for text_offset.
        n_top: most probable tokens to report; None: no log-probabilities.
        name: the model's, in the result.
        depth: what it leaves out.
    """

    model: _core.Model
    history: History
    chooser: Chooser
    prompt: list[int]
    n_max: int
    stop: list[bytes]
    name: str
    preserved: frozenset[int] = frozenset()
    echo: str = ""
    n_echo: int = 0
    n_top: int | None = None
    depth: Depth = IN_FORCE


def prompt_tokens(model: _core.Model, prompt: str | Sequence[int], suffix: str | None = None) -> list[int]:
    """Return the tokens of a prompt: a text with the tokens the model wants around it, or tokens as they are.

    Args:
        model: whose tokens.
        prompt: what comes before the text to write.
        suffix: what comes after it; the model has to know how to fill in.

    Raises:
        ValueError: no token at all, or a suffix for a model without tokens for it.
    """
    if isinstance(prompt, str):
        tokens = model.tokenize(prompt.encode(), False, True) if prompt else []
    else:
        tokens = [int(token) for token in prompt]
    if suffix is not None:
        before, after, middle = model.fim
        if min(before, after, middle) < 0:
            raise ValueError("suffix: this model has no tokens for filling in")
        tokens = [before, *tokens, after, *model.tokenize(suffix.encode(), False, False), middle]
    if isinstance(prompt, str):
        # an empty text begins with BOS even where the model does not ask for it
        bos = [model.bos] if model.bos >= 0 and (model.add_bos or not tokens) else []
        tokens = bos + tokens + ([model.eos] if model.add_eos else [])
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


def generated_pieces(request: Request) -> Iterator[Piece]:
    """Yield the generated text in pieces, and last one that says why it ended."""
    model = request.model
    generated = pieces(
        islice(
            request.history.generate(request.prompt, request.chooser.choose, request.depth), request.n_max
        ),
        is_end=model.is_eog,
        to_bytes=lambda token: model.detokenize([token], token in request.preserved),
        stop=request.stop,
    )
    for piece in generated:
        yield (
            piece._replace(finish_reason="stop") if piece.finish_reason and request.chooser.stopped else piece
        )


def stream(request: Request) -> Iterator[CompletionChunk]:
    """Yield a completion in pieces, the prompt first if it is echoed; only the last has a finish_reason."""
    make = chunk_maker(request.name)
    if request.echo:
        yield make(request.echo, None, None)
    for piece, logprobs in stream_logprobs(request, generated_pieces(request)):
        yield make(piece.text, logprobs, piece.finish_reason)


def stream_logprobs(
    request: Request, parts: Iterable[Piece]
) -> Iterator[tuple[Piece, CompletionLogprobs | None]]:
    """Yield each piece with the log-probabilities of the tokens that it needed, where they were asked for."""
    offset = request.n_echo
    n_reported = 0
    for piece in parts:
        logprobs = None
        if request.n_top is not None and piece.n_tokens > n_reported:
            logprobs = _logprobs(request.model, request.chooser.logprobs[n_reported : piece.n_tokens], offset)
            n_reported = piece.n_tokens
        offset += len(piece.text)
        yield piece, logprobs


def whole(request: Request) -> Completion:
    """Return a completion when it has ended; nothing else uses the context meanwhile."""
    with request.history.lock:
        echoed = _echoed_logprobs(request) if request.echo and request.n_top is not None else None
        parts = list(generated_pieces(request))
    last = parts[-1]
    logprobs = None
    if request.n_top is not None:
        found = request.chooser.logprobs[: last.n_tokens]
        offset = 0 if request.echo else request.n_echo
        logprobs = _logprobs(request.model, [*(echoed or []), *found], offset)
        if echoed and logprobs["tokens"]:
            logprobs["token_logprobs"][0] = logprobs["top_logprobs"][0] = None
    text = request.echo + "".join(piece.text for piece in parts)
    return {
        **chunk_maker(request.name)(text, logprobs, last.finish_reason),
        "usage": usage(len(request.prompt), last.n_tokens),
    }


def _echoed_logprobs(request: Request) -> list[TokenLogprobs]:
    """Evaluate the prompt, and return what each of its tokens but BOS was expected with.

    The first entry has no meaning where no BOS comes before it.
    """
    prompt, history, n_top = request.prompt, request.history, request.n_top or 0
    with history.at(history.joined(request.depth.prompt)):
        history.truncate(0)
        rows = history.logits(prompt, 0)
    found = [token_logprobs(row, token, n_top) for row, token in zip(rows, prompt[1:], strict=False)]
    if prompt[0] == request.model.bos:
        return found
    return [TokenLogprobs(prompt[0], 0.0, []), *found]


def _logprobs(model: _core.Model, found: Iterable[TokenLogprobs], offset: int) -> CompletionLogprobs:
    """Return OpenAI's form; text_offset counts characters."""
    result: CompletionLogprobs = {"tokens": [], "text_offset": [], "token_logprobs": [], "top_logprobs": []}
    before = b""
    for token, logprob, top in found:
        text = _text(model, token)
        result["tokens"].append(text)
        result["text_offset"].append(offset + len(before.decode("utf-8", "ignore")))
        result["token_logprobs"].append(logprob)
        result["top_logprobs"].append({**{_text(model, i): p for i, p in top}, text: logprob})
        before += model.detokenize([token], False)
    return result


def _text(model: _core.Model, token: int) -> str:
    return model.detokenize([token], False).decode("utf-8", "ignore")
