"""What stands in a gap instead of its blocks, as tensors: y = a * x + u (v z) + b, with z = x or normed x."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, dequantize, quantize
from gguf import GGMLQuantizationType as Type

Array = npt.NDArray[np.float32]

TIERS = ("identity", "scale", "affine", "linear")
BLOCK = 32  # numbers that share a scale in Q8_0
RANK_SHARE = 4  # the rank is at most n_embd over this,
BYTES_SHARE = 10  # and a bypass at most the gap's bytes over this


class Tensor(NamedTuple):
    """A tensor as a file holds it.

    Attributes:
        data: float32 or float16, or rows of bytes where the type is quantised.
        type: its type in GGUF.
    """

    data: npt.NDArray[Any]
    type: Type

    def values(self) -> Array:
        """Return its numbers."""
        return dequantize(self.data, self.type).astype(np.float32)


@dataclass(frozen=True)
class Bypass:
    """The bypass of one gap.

    Attributes:
        gap: the gap's first block.
        n_blocks: how many blocks it has; 0: it stands behind block gap - 1, of which a half is left out.
        tier: "affine" or "linear".
        rank: of the linear map, 0 for none.
        norm_eps: z = x / sqrt(mean(x^2) + norm_eps); None: z = x.
        tensors: those of a, b [n_embd], u [n_embd, rank] and v [rank, n_embd] that there are.
    """

    gap: int
    n_blocks: int
    tier: str
    rank: int = 0
    norm_eps: float | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def n_bytes(self) -> int:
        """The bytes of its tensors."""
        return sum(tensor.data.nbytes for tensor in self.tensors.values())

    def entry(self) -> dict[str, Any]:
        """Return what a plan's JSON says of it."""
        names = ("gap", "n_blocks", "tier", "rank", "norm_eps")
        return {name: getattr(self, name) for name in names}

    def apply(self, x: Array) -> Array:
        """Return the stream behind the gap; x [..., n_embd] is the stream before it, float32."""
        values = {name: tensor.values() for name, tensor in self.tensors.items()}
        y = x * values["a"] if "a" in values else x
        if "v" in values:
            z = x if self.norm_eps is None else normed(x, self.norm_eps)
            y = y + z @ values["v"].T @ values["u"].T
        return y + values["b"] if "b" in values else y


def normed(x: npt.NDArray[Any], eps: float) -> npt.NDArray[Any]:
    """Return x / sqrt(mean(x^2) + eps) over the last axis, in the precision of x."""
    mean = np.einsum("...i,...i->...", x, x) / x.shape[-1]
    scaled: npt.NDArray[Any] = x / np.sqrt(mean + x.dtype.type(eps))[..., None]
    return scaled


def affine(gap: range, a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Bypass:
    """Return the bypass y = a * x + b per channel."""
    tensors = {"a": float32_tensor(a), "b": float32_tensor(b)}
    return Bypass(gap.start, len(gap), "affine", tensors=tensors)


def scaled(gap: range, factor: float, n_embd: int) -> Bypass:
    """Return the bypass y = factor * x, for places that `--skip-scale` has no name for."""
    a = np.full(n_embd, factor, dtype=np.float32)
    return Bypass(gap.start, len(gap), "affine", tensors={"a": float32_tensor(a)})


def linear(
    gap: range, u: npt.NDArray[Any], v: npt.NDArray[Any], b: npt.NDArray[Any], norm_eps: float | None
) -> Bypass:
    """Return the bypass y = x + u (v z) + b; the maps as Q8_0 where their rows allow it, else as F16."""
    tensors = {"b": float32_tensor(b), "u": _small(u), "v": _small(v)}
    return Bypass(gap.start, len(gap), "linear", u.shape[1], norm_eps, tensors)


def largest_rank(n_embd: int, n_bytes: int, most: int | None = None) -> int:
    """Return the largest rank that is allowed; 0: none.

    Args:
        n_embd: the width.
        n_bytes: of what is left out.
        most: a bound beside those of width and bytes.
    """
    room = n_bytes / BYTES_SHARE - n_bytes_of_linear(n_embd, 0)
    within = min(most or n_embd, n_embd // RANK_SHARE)

    def of_multiple(n: int) -> int:
        of_rank = n_embd * (_of_number(n_embd) + _of_number(n))
        return max(min(within, int(room / of_rank)), 0) // n * n

    return max(of_multiple(1), of_multiple(BLOCK))


def n_bytes_of_linear(n_embd: int, rank: int) -> float:
    """Return the bytes that linear() takes."""
    return 4 * n_embd + n_embd * rank * (_of_number(n_embd) + _of_number(rank))


def _of_number(row: int) -> float:
    """Return the bytes of a number in rows of so many."""
    n_numbers, n_bytes = GGML_QUANT_SIZES[_type(row)]
    return n_bytes / n_numbers


def described(bypasses: Iterable[Bypass]) -> str:
    """Return what stands in the gaps, as "linear (rank 64) at 13, affine at 25"."""
    return ", ".join(
        part.tier + (f" (rank {part.rank})" if part.rank else "") + f" at {part.gap}" for part in bypasses
    )


def float32_tensor(values: npt.NDArray[Any]) -> Tensor:
    """Return numbers as a tensor that keeps them."""
    return Tensor(np.ascontiguousarray(values, dtype=np.float32), Type.F32)


def _small(values: npt.NDArray[Any]) -> Tensor:
    kind = _type(values.shape[-1])
    return Tensor(quantize(np.ascontiguousarray(values, dtype=np.float32), kind), kind)


def _type(row: int) -> Type:
    """Return the type of rows of so many numbers."""
    return Type.F16 if row % BLOCK else Type.Q8_0


def named_tensors(bypasses: Iterable[Bypass]) -> dict[str, Tensor]:
    """Return the tensors of a plan file by their names there."""
    return {
        f"gap.{bypass.gap}.{name}": tensor
        for bypass in bypasses
        for name, tensor in sorted(bypass.tensors.items())
    }


def with_tensors(parts: Iterable[Bypass], tensors: Mapping[str, Tensor]) -> list[Bypass]:
    """Return bypasses with their tensors out of what named_tensors() returned."""
    found = []
    for part in parts:
        prefix = f"gap.{part.gap}."
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        found.append(replace(part, tensors=own))
    return found
