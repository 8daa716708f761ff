"""KL divergence and top-1 agreement of a model with a reference, on the tokens that perplexity scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llama_skip.measure.perplexity import (
    Logits,
    Perplexity,
    perplexity,
    surprisal,
    window_logits,
    window_targets,
)
from llama_skip.model.divergence import kl_divergence


class Divergence(NamedTuple):
    """KL divergence from a reference, in nats per token.

    Attributes:
        mean, error: mean over tokens, and its standard error.
        median, quantile_99: half, and 99 %, of the tokens have less.
        top1: the share of tokens with the reference's most probable token.
        n_tokens: the tokens that these rest on.
    """

    mean: float
    error: float
    median: float
    quantile_99: float
    top1: float
    n_tokens: int


class Scored(NamedTuple):
    """What was measured on some tokens, each [n]: -log p and KL divergence in nats, equal first choice."""

    surprisal: npt.NDArray[np.float64]
    kld: npt.NDArray[np.float64]
    same: npt.NDArray[np.bool_]


def top1(logits: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return whether both have the same most probable token, [n]; of equal ones the lowest counts."""
    same: npt.NDArray[np.bool_] = logits.argmax(axis=1) == reference.argmax(axis=1)
    return same


def scored(
    logits: npt.NDArray[np.float32], window: Sequence[int], reference: npt.NDArray[np.float32] | None
) -> Scored:
    """Return what is measured on a window by the logits that predict its targets.

    Args:
        logits: of perplexity.window_logits().
        window: as of perplexity.windows().
        reference: the reference model's logits; None: these are the reference's.

    Raises:
        ValueError: NaN or infinity in the logits.
    """
    surprisals = surprisal(logits, window_targets(window))
    if reference is None:
        n = len(surprisals)
        return Scored(surprisals, np.zeros(n), np.ones(n, dtype=np.bool_))
    return Scored(surprisals, kl_divergence(logits, reference), top1(logits, reference))


def score_window(
    llm: Logits, window: Sequence[int], reference: npt.NDArray[np.float32] | None = None
) -> tuple[Scored, npt.NDArray[np.float32]]:
    """Return what is measured on a window, and its logits.

    Args:
        llm: a model whose context holds the window.
        window: as of perplexity.windows().
        reference: the reference model's logits; None: this model is the reference.

    Raises:
        ValueError: NaN or infinity in the logits.
    """
    logits = window_logits(llm, window)
    return scored(logits, window, reference), logits


def summary(pieces: Sequence[Scored]) -> tuple[Perplexity, Divergence]:
    """Return perplexity and divergence of the tokens of all pieces.

    Raises:
        ValueError: no token.
    """
    measured = perplexity(piece.surprisal for piece in pieces)
    kld = np.concatenate([piece.kld for piece in pieces])
    same = np.concatenate([piece.same for piece in pieces])
    return measured, Divergence(
        mean=float(kld.mean()),
        error=float(kld.std()) / math.sqrt(max(kld.size - 1, 1)),
        median=float(np.median(kld)),
        quantile_99=float(np.quantile(kld, 0.99)),
        top1=float(same.mean()),
        n_tokens=kld.size,
    )
