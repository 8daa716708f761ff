"""From generated tokens to text: whole characters only, and nothing of a stop sequence."""

from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator, Sequence

from llama_skip.results import FinishReason


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
) -> Iterator[tuple[str, FinishReason | None]]:
    """Yield the text of `tokens` as it becomes certain, and last ("", why it ended).

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
    reason: FinishReason = "length"
    for token in tokens:
        if is_end(token):
            reason = "stop"
            break
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
            yield text, None
    if text := decoder.decode(held, final=True):
        yield text, None
    yield "", reason


def _overlap(held: bytes, stop: Sequence[bytes]) -> int:
    """Return the length of the longest end of `held` that begins a stop sequence."""
    longest = max(map(len, stop), default=0) - 1
    for n in range(min(longest, len(held)), 0, -1):
        if any(s.startswith(held[-n:]) for s in stop):
            return n
    return 0
