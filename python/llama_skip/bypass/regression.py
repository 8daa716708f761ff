"""Least squares for the map from the stream before a gap to the stream behind it, from sums over tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llama_skip.bypass.bypass import normed

Floats = npt.NDArray[np.float64]

EPS = 1e-6
N_ROUNDS = 8  # of fitting a and the map in turn


@dataclass(frozen=True)
class Linear:
    """y = a * x + u (v z) + b: a, b [n_embd], u [n_embd, rank], v [rank, n_embd]."""

    a: Floats
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
        self._zx = np.zeros((n_embd, n_embd))
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
        self._zx += z.T @ xw
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
        a = 1 + self._xd() / self._variance()
        return a, (self._t - a * self._x) / self._w

    def linear(self) -> LinearFits:
        """Return the maps, which differ in ridge and rank."""
        return LinearFits(
            self._zz - np.outer(self._z, self._z) / self._w,
            self._zd - np.outer(self._z, self._d) / self._w,
            self._zx - np.outer(self._z, self._x) / self._w,
            self._xd(),
            self._variance(),
            (self._z / self._w, self._d / self._w, self._x / self._w),
        )

    def _xd(self) -> Floats:
        """Return how each channel of x varies with d = t - x."""
        return self._xt - self._xx - self._x * self._d / self._w

    def _variance(self) -> Floats:
        """Return how much each channel of x varies; infinity if it does not."""
        variance = self._xx - self._x**2 / self._w
        return np.where(variance > 1e-9 * self._xx, variance, np.inf)


class LinearFits:
    """Reduced-rank ridge regressions, with a factor for each channel, on the same sums."""

    def __init__(
        self,
        zz: Floats,
        zd: Floats,
        zx: Floats,
        xd: Floats,
        xx: Floats,
        means: tuple[Floats, Floats, Floats],
    ) -> None:
        """Decompose the sums over tokens, all of what differs from the means.

        Args:
            zz, zd, zx: products of z, d = t - x and x, [n_embd, n_embd].
            xd, xx: of a channel of x with the same one of d and x, [n_embd].
            means: of z, d and x.
        """
        self._xd, self._xx = xd, xx
        self._mean_z, self._mean_d, self._mean_x = means
        values, self._q = np.linalg.eigh(zz)
        self._values = np.maximum(values, 0)
        self._qd, self._qx = self._q.T @ zd, self._q.T @ zx

    def fit(self, ridge: float, rank: int, gain: float = 1.0) -> Linear:
        """Return the map of at most `rank` with the least squared error plus a penalty, and a beside it.

        Either is the best one beside the other, of the other that the last round found. A map alone needs a
        higher rank to say what a says in a row.

        Args:
            ridge: what the square of a coefficient of the map costs, in mean variances of a channel of z.
            rank: at most n_embd.
            gain: what differs from the mean changes so many times as much; over 1 it varies as much as what
                the blocks do, less of which a fit explains.
        """
        root = np.sqrt(self._values + ridge * self._values.mean() + np.finfo(np.float64).tiny)[:, None]
        qd, qx = self._qd / root, self._qx / root
        u = np.linalg.eigh(qd.T @ qd)[1][:, -rank:]  # what is fitted varies most along these
        a = np.zeros(len(u))
        for _ in range(N_ROUNDS):
            fitted = np.einsum("ij,ij->i", qx.T @ ((qd - a * qx) @ u), u)
            a = (self._xd - fitted) / self._xx
            rest = qd - a * qx
            u = np.linalg.qr(rest.T @ (rest @ u))[0]
        v = gain * (self._q @ ((qd - a * qx) @ u / root)).T
        a = gain * a
        return Linear(1 + a, u, v, self._mean_d - a * self._mean_x - u @ (v @ self._mean_z))


def token_weights(t: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return 1 / mean(t^2) of each row of a stream, float64 [n_tokens].

    The norm that reads the stream next divides by the root of that, so a fit under these weights minimises
    the error which that norm passes on, and the few tokens with massive activations count as much as others.
    """
    weights: npt.NDArray[np.float64] = 1 / (np.einsum("ni,ni->n", t, t, dtype=np.float64) / t.shape[1] + EPS)
    return weights
