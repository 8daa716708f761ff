"""How much a token of the residual stream counts in a fit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

EPS = 1e-6


def token_weights(t: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return 1 / mean(t^2) of each row of a stream, float64 [n_tokens].

    The norm that reads the stream next divides by the root of that, so a fit under these weights minimises
    the error which that norm passes on, and the few tokens with massive activations count as much as others.
    """
    weights: npt.NDArray[np.float64] = 1 / (np.einsum("ni,ni->n", t, t, dtype=np.float64) / t.shape[1] + EPS)
    return weights
