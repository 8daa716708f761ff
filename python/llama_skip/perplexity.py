"""Perplexity of a text, by llama-perplexity's method: windows, of which the second half is scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

ROWS = 32  # as many rows of logits are in float64 at a time


class Logits(Protocol):
    """What is measured; `llama_skip.Llama` is one."""

    def logits(self, tokens: Sequence[int], *, first: int) -> npt.NDArray[np.float32]:
        """Return the logits of tokens, evaluated anew, from token `first` on."""


class Perplexity(NamedTuple):
    """Perplexity of a text, its standard error, and the number of tokens scored."""

    value: float
    error: float
    n_tokens: int


def log_softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return log-probabilities in nats, float64, over the last axis."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


def surprisal(logits: npt.NDArray[np.floating], targets: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return -log p of each target in nats, float64 [n]; row i of `logits` [n, n_vocab] predicts target i."""
    parts = []
    for i in range(0, len(targets), ROWS):
        chosen = np.asarray(targets[i : i + ROWS])
        parts.append(-log_softmax(logits[i : i + len(chosen)])[np.arange(len(chosen)), chosen])
    return np.concatenate(parts)


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


def window_surprisal(llm: Logits, window: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return -log p in nats of the second half's tokens but its first, float64 [n_ctx - n_ctx // 2 - 1]."""
    first = len(window) // 2
    return surprisal(llm.logits(window, first=first), window[first + 1 :])


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
        ValueError: a text that fills no window.
    """

    def scored() -> Iterator[npt.NDArray[np.float64]]:
        for window in windows(tokens, n_ctx, bos):
            yield window_surprisal(llm, window)
            on_window()

    return perplexity(scored())
