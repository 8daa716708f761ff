"""Least squares for the map from the stream before a gap to the stream behind it, from sums over tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llama_skip.bypass.bypass import normed

Floats = npt.NDArray[np.float64]

EPS = 1e-6


@dataclass(frozen=True)
class Linear:
    """y = x + u (v z) + b: u [n_embd, rank], v [rank, n_embd], b [n_embd]."""

    u: Floats
    v: Floats
    b: Floats


class Sums:
    """Sums over tokens of x, the stream before a gap, and t, the stream that its blocks made of it.

    Tokens weigh what token_weights() says. The linear map reads z = normed x, as the blocks did which it
    stands for.

    Attributes:
        n_tokens: how many.
    """

    def __init__(self, n_embd: int) -> None:
        self.n_tokens = 0
        self._zz = np.zeros((n_embd, n_embd))
        self._zd = np.zeros((n_embd, n_embd))
        self._z, self._d = np.zeros(n_embd), np.zeros(n_embd)
        self._x, self._t, self._xx, self._xt = (np.zeros(n_embd) for _ in range(4))
        self._w = 0.0

    def add(self, x: npt.NDArray[np.float32], t: npt.NDArray[np.float32]) -> None:
        """Add tokens; x and t [n_tokens, n_embd]."""
        x, t = x.astype(np.float32), t.astype(np.float32)
        w = token_weights(t)
        root = np.sqrt(w).astype(np.float32)[:, None]
        z, d, xw, tw = normed(x, EPS) * root, (t - x) * root, x * root, t * root
        self._zz += z.T @ z
        self._zd += z.T @ d
        column = np.sqrt(w)
        for total, rows in ((self._z, z), (self._d, d), (self._x, xw), (self._t, tw)):
            total += column @ rows
        self._xx += np.einsum("ni,ni->i", xw, xw, dtype=np.float64)
        self._xt += np.einsum("ni,ni->i", xw, tw, dtype=np.float64)
        self._w += float(w.sum())
        self.n_tokens += len(x)

    def scale(self) -> float:
        """Return the a of y = a * x."""
        return float(self._xt.sum() / self._xx.sum())

    def affine(self) -> tuple[Floats, Floats]:
        """Return a and b of y = a * x + b, each [n_embd]; a channel that does not vary gets a = 1."""
        variance = self._xx - self._x**2 / self._w
        covariance = self._xt - self._x * self._t / self._w
        varies = variance > 1e-9 * self._xx
        a = np.where(varies, covariance / np.where(varies, variance, 1), 1.0)
        return a, (self._t - a * self._x) / self._w

    def linear(self) -> LinearFits:
        """Return the maps, which differ in ridge and rank."""
        return LinearFits(
            self._zz - np.outer(self._z, self._z) / self._w,
            self._zd - np.outer(self._z, self._d) / self._w,
            self._z / self._w,
            self._d / self._w,
        )


class LinearFits:
    """Reduced-rank ridge regressions on the same sums; those are decomposed once."""

    def __init__(self, zz: Floats, zd: Floats, mean_z: Floats, mean_d: Floats) -> None:
        self._mean_z, self._mean_d = mean_z, mean_d
        values, self._q = np.linalg.eigh(zz)
        self._values = np.maximum(values, 0)
        self._qd = self._q.T @ zd

    def fit(self, ridge: float, rank: int, gain: float = 1.0) -> Linear:
        """Return the map of at most `rank` with the least squared error plus a penalty.

        Args:
            ridge: what the square of a coefficient costs, in mean variances of a channel of z.
            rank: at most n_embd.
            gain: the map of what differs from the mean times this; over 1 it varies as much as what it
                stands for, less of which a fit explains.
        """
        shrunk = self._values + ridge * self._values.mean() + np.finfo(np.float64).tiny
        half = self._qd / np.sqrt(shrunk)[:, None]
        _, directions = np.linalg.eigh(half.T @ half)
        u = directions[:, -rank:]  # what is fitted varies most along these
        v = gain * (self._q @ ((self._qd @ u) / shrunk[:, None])).T
        return Linear(u, v, self._mean_d - u @ (v @ self._mean_z))


def token_weights(t: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return 1 / mean(t^2) of each row of a stream, float64 [n_tokens].

    The norm that reads the stream next divides by the root of that, so a fit under these weights minimises
    the error which that norm passes on, and the few tokens with massive activations count as much as others.
    """
    weights: npt.NDArray[np.float64] = 1 / (np.einsum("ni,ni->n", t, t, dtype=np.float64) / t.shape[1] + EPS)
    return weights
