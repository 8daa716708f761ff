"""Perplexity of a text, by llama-perplexity's method: windows, of which the second half is scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from llama_skip.model.divergence import check_finite, chunks


class Logits(Protocol):
    """What is measured; `llama_skip.Llama` is one."""

    def logits(self, tokens: Sequence[int], *, first: int) -> npt.NDArray[np.float32]:
        """Return the logits of tokens, evaluated anew, from token `first` on."""


class Perplexity(NamedTuple):
    """Perplexity of a text, its standard error, and the number of tokens scored."""

    value: float
    error: float
    n_tokens: int


def surprisal(logits: npt.NDArray[np.float32], targets: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return -log p of each target in nats, float64 [n]; row i of `logits` [n, n_vocab] predicts target i.

    It rounds where llama-perplexity does, so that all digits which that prints are the same.

    Raises:
        ValueError: NaN or infinity in the logits.
    """
    found = np.empty(len(targets))
    chosen = np.asarray(targets)
    for rows in chunks(logits[: len(targets)]):
        with np.errstate(invalid="ignore"):
            x = logits[rows] - logits[rows].max(axis=1, keepdims=True)
        # expf() is exp() rounded to float32; numpy's own float32 exp() is often one digit off
        total = np.exp(x.astype(np.float64)).astype(np.float32).sum(axis=1, dtype=np.float64)
        found[rows] = np.log(total) - x[np.arange(len(x)), chosen[rows]]
    check_finite(found, logits)
    return found


def windows(tokens: Sequence[int], n_ctx: int, bos: int | None) -> Iterator[list[int]]:
    """Yield the consecutive whole windows of a text; what is left over is not scored.

    Args:
        tokens: the text.
        n_ctx: tokens in a window.
        bos: put in place of each window's first token, where the model wants it (as llama-perplexity does).
    """
    for i in range(0, len(tokens) - n_ctx + 1, n_ctx):
        window = list(tokens[i : i + n_ctx])
        if bos is not None:
            window[0] = bos
        yield window


def window_logits(llm: Logits, window: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return the logits that predict window_targets(), float32 [n_ctx - n_ctx // 2 - 1, n_vocab]."""
    return llm.logits(window, first=len(window) // 2)[:-1]


def window_targets(window: Sequence[int]) -> Sequence[int]:
    """Return the tokens that are scored: the second half's but its first."""
    return window[len(window) // 2 + 1 :]


def window_surprisal(llm: Logits, window: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return -log p of window_targets() in nats, float64 [n_ctx - n_ctx // 2 - 1]."""
    return surprisal(window_logits(llm, window), window_targets(window))


def perplexity(surprisals: Iterable[npt.NDArray[np.float64]]) -> Perplexity:
    """Return the perplexity of tokens by their -log p in nats, given in pieces.

    The error is the standard error of the mean of -log p, times the perplexity, as llama-perplexity prints
    it.

    Raises:
        ValueError: no token.
    """
    n, total, squares = 0, 0.0, 0.0
    for piece in surprisals:
        n += piece.size
        total += float(piece.sum())
        squares += float((piece * piece).sum())
    if n == 0:
        raise ValueError("perplexity: no token to score")
    mean = total / n
    spread = max(squares / n - mean * mean, 0.0)
    value = math.exp(mean)
    return Perplexity(value, value * math.sqrt(spread / max(n - 1, 1)), n)


def measure(
    llm: Logits,
    tokens: Sequence[int],
    *,
    n_ctx: int,
    bos: int | None,
    on_window: Callable[[], object] = lambda: None,
) -> Perplexity:
    """Return the perplexity of a text under a model; one window's logits are in memory at a time.

    Args:
        llm: a model whose context holds n_ctx tokens.
        tokens: the text, at least n_ctx tokens.
        n_ctx: tokens in a window.
        bos: as for windows().
        on_window: called after each window.

    Raises:
        ValueError: a text that fills no window, or NaN or infinity in the logits.
    """

    def scored() -> Iterator[npt.NDArray[np.float64]]:
        for window in windows(tokens, n_ctx, bos):
            yield window_surprisal(llm, window)
            on_window()

    return perplexity(scored())
