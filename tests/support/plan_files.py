"""Plan files, JSON or GGUF with the tensors of bypasses, by gguf-py, and what a bypass computes, in numpy.

A gap with tensors is y = a.x + U(Vz) + b, where z is x, or x / sqrt(mean(x^2) + norm_eps).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize

F32 = GGMLQuantizationType.F32
EPS32 = 2.0**-24  # half a unit in the last place of a float32 near 1


@dataclass(frozen=True)
class Bypass:
    """What stands in a gap: a and b [n_embd], v [rank, n_embd], u [n_embd, rank]; some may be None."""

    gap: int
    n_blocks: int = 1
    a: np.ndarray | None = None
    b: np.ndarray | None = None
    u: np.ndarray | None = None
    v: np.ndarray | None = None
    norm_eps: float | None = None
    type: GGMLQuantizationType = F32  # of u and v in the file

    def tensors(self) -> dict[str, np.ndarray]:
        """As they stand in the file; quantised ones as bytes."""
        vectors = {"a": self.a, "b": self.b}
        matrices = {"u": self.u, "v": self.v}
        found = {name: data.astype(np.float32) for name, data in vectors.items() if data is not None}
        found |= {name: quantize(data, self.type) for name, data in matrices.items() if data is not None}
        return {f"gap.{self.gap}.{name}": data for name, data in found.items()}

    @property
    def n_bytes(self) -> int:
        return sum(data.nbytes for data in self.tensors().values())

    def entry(self) -> dict[str, Any]:
        tier = {"tier": "affine"} if self.u is None else {"tier": "linear", "rank": self.u.shape[1]}
        return {"gap": self.gap, "n_blocks": self.n_blocks, **tier, "norm_eps": self.norm_eps}

    def apply(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """y in float64 for rows of x; how far a graph may be from it; and how far it should be.

        A sum of n products in float32, in any order, is off by at most n units of EPS32 times the sum of
        their magnitudes, to first order; 8 more cover the norm, the products with a and the last additions.
        A product with a matrix that is not float32 also reads the other factor in another type, see read().
        These roundings all of one sign are the first error. The second is the standard deviation where they
        are independent and even: each then has a variance of a third of its square.
        """
        x = x.astype(np.float64)
        y = x if self.a is None else self.a.astype(np.float32).astype(np.float64) * x
        size, error, spread = np.abs(y), np.zeros_like(y), np.zeros_like(y)
        if self.u is not None and self.v is not None:
            u, v = (
                dequantize(quantize(m, self.type), self.type).astype(np.float64) for m in (self.u, self.v)
            )
            z = x
            if self.norm_eps is not None:
                z = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + np.float32(self.norm_eps))
            hidden = z @ v.T
            e_hidden = (self.read(np.abs(z)) + (v.shape[1] + 8) * EPS32 * np.abs(z)) @ np.abs(v).T
            reach = np.abs(hidden) + e_hidden
            error = (e_hidden + self.read(reach) + (u.shape[1] + 8) * EPS32 * reach) @ np.abs(u).T
            variance = self.read(np.abs(z)) ** 2 / 3 @ (v * v).T + self.read(np.abs(hidden)) ** 2 / 3
            spread = np.sqrt(variance @ (u * u).T)
            size = size + np.abs(hidden) @ np.abs(u).T
            y = y + hidden @ u.T
        if self.b is not None:
            y = y + self.b.astype(np.float32)
            size = size + np.abs(self.b)
        return y, 1.01 * (error + 8 * EPS32 * size), spread  # 1.01: what is of second order

    def read(self, size: np.ndarray) -> np.ndarray:
        """How far what the CPU's product reads may be from values of at most this size.

        Beside F16 weights it is rounded to float16: half a unit of its 11 bits, 2^-25 below its normal range;
        beside BF16 to bfloat16, of 8 bits. Beside Q8_0 each 32 values are quantised alike, to steps of their
        largest / 127, and the step is rounded to float16: half a step, and the largest times 2^-11.
        """
        if self.type == GGMLQuantizationType.F16:
            return np.maximum(size * 2.0**-11, 2.0**-25)
        if self.type == GGMLQuantizationType.BF16:
            return size * 2.0**-8
        if self.type == GGMLQuantizationType.Q8_0:
            largest = size.reshape(*size.shape[:-1], -1, 32).max(axis=-1)
            return np.repeat(largest * (1 / 254 + 2.0**-11), 32, axis=-1)
        return np.zeros_like(size)


def random_bypass(
    gap: int, n_embd: int, rank: int = 0, *, parts: str = "abuv", seed: int = 1, **more: Any
) -> Bypass:
    """A bypass that changes the stream by about its own size; `parts` are the tensors it has."""
    random = np.random.default_rng(seed)
    made = {
        "a": 1 + 0.1 * random.normal(size=n_embd),
        "b": 0.1 * random.normal(size=n_embd),
        "u": random.normal(size=(n_embd, rank)) / max(rank, 1) ** 0.5,
        "v": 0.5 * random.normal(size=(rank, n_embd)) / n_embd**0.5,
    }
    wanted = parts if rank else parts.replace("u", "").replace("v", "")
    return Bypass(
        gap, **{name: data.astype(np.float32) for name, data in made.items() if name in wanted}, **more
    )


def identity(path: Path) -> dict[str, str]:
    from llama_skip import _core

    found = _core.identify(str(path))
    return {key: found[key] for key in ("model_id", "file_id")}


def content(model: Path, layers: str, /, **changes: Any) -> dict[str, Any]:
    """What a plan file says; keys whose new value is ... are left out."""
    says = {
        "format": "llama-skip-plan",
        "version": 1,
        "model": {"name": model.name, **identity(model)},
        "skip_layers": layers,
        "skip_scale": "",
        "found": {"method": "greedy", "kld": 0.75},
        **changes,
    }
    return {key: value for key, value in says.items() if value is not ...}


def write_json(path: Path, model: Path, layers: str, /, **changes: Any) -> Path:
    path.write_text(json.dumps(content(model, layers, **changes)))
    return path


def write_gguf(
    path: Path,
    model: Path,
    layers: str,
    bypasses: list[Bypass],
    /,
    *,
    arch: str = "llama",
    tensors: dict[str, np.ndarray | None] | None = None,
    **changes: Any,
) -> Path:
    """Write a plan as GGUF; `tensors` are added to or replace those of the bypasses; None: is missing."""
    says = content(model, layers, **{"bypass": [bypass.entry() for bypass in bypasses], **changes})
    writer = GGUFWriter(path, arch)
    writer.add_string("skip.plan_file", json.dumps(says))
    found: dict[str, np.ndarray | None] = {}
    types = {}
    for bypass in bypasses:
        found |= bypass.tensors()
        types |= dict.fromkeys(bypass.tensors(), bypass.type)
    for name, data in (found | (tensors or {})).items():
        if data is not None:
            writer.add_tensor(name, data, raw_dtype=types[name] if data.dtype == np.uint8 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
