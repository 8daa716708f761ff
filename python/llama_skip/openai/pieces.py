"""From generated tokens to text: whole characters only, and nothing of a stop sequence."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from llama_skip.openai.results import FinishReason


class Piece(NamedTuple):
    """Text that is certain, how many tokens there were when it became so, and at the end why it ended."""

    text: str
    n_tokens: int
    finish_reason: FinishReason | None


def stop_sequences(stop: str | Sequence[str] | None) -> list[bytes]:
    """Return the texts that end a completion, as bytes; an empty one is ignored."""
    texts = [stop] if isinstance(stop, str) else list(stop or [])
    return [s.encode() for s in texts if s]


def pieces(
    tokens: Iterable[int],
    *,
    is_end: Callable[[int], bool],
    to_bytes: Callable[[int], bytes],
    stop: Sequence[bytes],
) -> Iterator[Piece]:
    """Yield the text of `tokens` as it becomes certain, and last a piece without text that says why it ended.

    Bytes are held back while they may be the beginning of a stop sequence, or are part of a character; bytes
    that are no UTF-8 are dropped, as in llama-cpp-python.

    Args:
        tokens: the generated tokens; its end means "length".
        is_end: whether a token ends the text.
        to_bytes: the bytes of one token.
        stop: the texts that end the completion.
    """
    decoder = getincrementaldecoder("utf-8")("ignore")
    held = b""
    n_tokens = 0
    reason: FinishReason = "length"
    for token in tokens:
        if is_end(token):
            reason = "stop"
            break
        n_tokens += 1
        held += to_bytes(token)
        ends = [at for s in stop if (at := held.find(s)) >= 0]
        if ends:
            held = held[: min(ends)]
            reason = "stop"
            break
        certain = len(held) - _overlap(held, stop)
        text = decoder.decode(held[:certain])
        held = held[certain:]
        if text:
            yield Piece(text, n_tokens, None)
    if text := decoder.decode(held, final=True):
        yield Piece(text, n_tokens, None)
    yield Piece("", n_tokens, reason)


def _overlap(held: bytes, stop: Sequence[bytes]) -> int:
    """Return the length of the longest end of `held` that begins a stop sequence."""
    longest = max(map(len, stop), default=0) - 1
    for n in range(min(longest, len(held)), 0, -1):
        if any(s.startswith(held[-n:]) for s in stop):
            return n
    return 0
