"""KL divergence of logits, worked on in pieces."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

CHUNK = 1 << 18  # logits worked on at a time: they and what is made of them fit into a processor's cache


def chunks(logits: npt.NDArray[np.float32]) -> Iterator[slice]:
    """Yield slices of rows of `logits` [n, n_vocab] to work on one after the other."""
    n, n_vocab = logits.shape
    step = max(CHUNK // n_vocab, 1)
    yield from (slice(i, min(i + step, n)) for i in range(0, n, step))


def check_finite(values: npt.NDArray[np.float64], logits: npt.NDArray[np.float32]) -> None:
    """Raise ValueError where a value, computed from the same row of `logits`, is not finite."""
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        what = "NaN" if np.isnan(logits[bad]).any() else "infinity"
        raise ValueError(f"{what} in the logits of {bad.size} of {len(values)} tokens")


def kl_divergence(
    logits: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Return sum p (log p - log q) of each row in nats, p from `reference` and q from `logits`, float64 [n].

    Exponentials are float32 and sums float64: the error stays under 1e-6.

    Args:
        logits, reference: float32 [n, n_vocab].

    Raises:
        ValueError: NaN or infinity in the logits.
    """
    found = np.empty(len(logits))
    for rows in chunks(logits):
        with np.errstate(invalid="ignore"):
            p = reference[rows] - reference[rows].max(axis=1, keepdims=True)
            q = logits[rows] - logits[rows].max(axis=1, keepdims=True)
            difference = p - q
            np.exp(p, out=p)
            np.exp(q, out=q)
            total_p, total_q = (x.sum(axis=1, dtype=np.float64) for x in (p, q))
            weighted = np.multiply(p, difference, out=difference).sum(axis=1, dtype=np.float64)
        found[rows] = weighted / total_p + np.log(total_q / total_p)
    if not np.isfinite(found).all():
        check_finite(found, np.concatenate([logits, reference], axis=1))
    return np.maximum(found, 0.0)  # rounding can take equal rows below
