"""What the residual stream says about blocks: block influence, norms, and angular distance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Stream = npt.NDArray[np.float32]
ROWS = 64  # tokens at a time in float64


class StreamStatistics:
    """Means over the tokens of several windows."""

    def __init__(self, n_layer: int) -> None:
        self.n_tokens = 0
        self._norms = np.zeros(n_layer + 1)
        self._cosine = np.zeros(n_layer)
        self._angles = np.zeros((n_layer + 1, n_layer + 1))

    def add(self, inputs: Stream, end: Stream) -> None:
        """Count a window.

        Args:
            inputs: what enters each block, [n_layer, n_tokens, n_embd].
            end: what leaves the last one, [n_tokens, n_embd].
        """
        for i in range(0, len(end), ROWS):
            x = np.concatenate([inputs[:, i : i + ROWS], end[None, i : i + ROWS]]).astype(np.float64)
            x = x.transpose(1, 0, 2)
            norms = np.linalg.norm(x, axis=-1, keepdims=True)
            x /= np.where(norms > 0, norms, 1)
            cosines = np.clip(x @ x.transpose(0, 2, 1), -1, 1)
            self._norms += norms[..., 0].sum(0)
            self._cosine += np.diagonal(cosines, 1, 1, 2).sum(0)
            self._angles += np.arccos(cosines).sum(0) / np.pi
            self.n_tokens += len(x)

    @property
    def influence(self) -> npt.NDArray[np.float64]:
        """1 - cosine of what enters and leaves each block, [n_layer] (ShortGPT, arXiv 2403.03853)."""
        return 1 - self._cosine / self.n_tokens

    @property
    def norms(self) -> npt.NDArray[np.float64]:
        """Euclidean norms of what enters each block, and of what leaves the last one, [n_layer + 1]."""
        return self._norms / self.n_tokens

    @property
    def angular(self) -> list[list[float | None]]:
        """[l][n - 1]: angular distance, 0 to 1, between what enters blocks l and l + n (arXiv 2403.17887).

        The mean over all tokens; the paper takes the last token of each text.
        """
        return [(row[i + 1 :] / self.n_tokens).tolist() for i, row in enumerate(self._angles[:-1])]
