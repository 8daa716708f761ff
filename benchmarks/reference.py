"""Llama and Qwen2 in numpy on dequantised weights, without code of llama.cpp or llama_skip.

No activation is quantised: float32 throughout, as the papers write the models. A file with anything else in
it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader
from gguf.quants import dequantize

Array = npt.NDArray[np.float32]

CHUNK = 128  # queries, or rows of logits, at once
WHOLE = {"token_embd.weight", "output_norm.weight", "output.weight"}
IN_BLOCK = {
    *(f"{name}.weight" for name in ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output")),
    *(f"{name}.weight" for name in ("ffn_norm", "ffn_gate", "ffn_up", "ffn_down")),
    *(f"attn_{name}.bias" for name in "qkv"),
}


@dataclass(frozen=True)
class Block:
    """One block's weights, [n_out, n_in]; queries, keys and values stacked, gate and up stacked."""

    attn_norm: Array
    qkv: Array
    qkv_bias: Array | None
    attn_output: Array
    ffn_norm: Array
    gate_up: Array
    down: Array


@dataclass(frozen=True)
class Model:
    blocks: list[Block]
    embedding: Array
    output_norm: Array
    head: Array
    n_head: int
    n_kv: int
    eps: float
    freq_base: float
    interleaved: bool  # RoPE turns neighbours (llama's files are permuted for it), else halves of a head

    def embed(self, tokens: npt.ArrayLike) -> Array:
        """Return the stream before block 0, [..., n_embd]."""
        return self.embedding[np.asarray(tokens)]

    def block(self, il: int, x: Array) -> Array:
        """Return the stream after block il; x [n_windows, n_tokens, n_embd] is the stream before it."""
        block = self.blocks[il]
        qkv = rms_norm(x, block.attn_norm, self.eps) @ block.qkv.T
        if block.qkv_bias is not None:
            qkv += block.qkv_bias
        x = x + self._attention(qkv) @ block.attn_output.T
        gate, up = np.split(rms_norm(x, block.ffn_norm, self.eps) @ block.gate_up.T, 2, axis=-1)
        up = up * gate
        up /= 1 + np.exp(-gate)
        return x + up @ block.down.T

    def _attention(self, qkv: Array) -> Array:
        n_windows, n_tokens, width = qkv.shape
        heads = qkv.reshape(n_windows, n_tokens, self.n_head + 2 * self.n_kv, -1).swapaxes(1, 2)
        heads[:, : self.n_head + self.n_kv] = self._rope(heads[:, : self.n_head + self.n_kv])
        out = np.empty((n_windows, n_tokens, width * self.n_head // heads.shape[1]), np.float32)
        for i in range(n_windows):
            q, k, v = np.split(heads[i], [self.n_head, self.n_head + self.n_kv])
            out[i] = attention(q, k, v).swapaxes(0, 1).reshape(n_tokens, -1)
        return out

    def _rope(self, x: Array) -> Array:
        """x: [..., n_tokens, n_head_dim]."""
        n_tokens, n_dim = x.shape[-2:]
        angle = np.outer(np.arange(n_tokens), self.freq_base ** (-np.arange(0, n_dim, 2) / n_dim))
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        half = n_dim // 2
        a, b = (
            (slice(0, None, 2), slice(1, None, 2)) if self.interleaved else (slice(half), slice(half, None))
        )
        out = np.empty_like(x)
        out[..., a] = x[..., a] * cos - x[..., b] * sin
        out[..., b] = x[..., a] * sin + x[..., b] * cos
        return out

    def logits(self, x: Array) -> Array:
        """Return the logits after the last block's stream, [..., n_vocab]."""
        return rms_norm(x, self.output_norm, self.eps) @ self.head.T

    def surprisal(self, x: Array, targets: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return -log p of each target in nats, float64; row i of x [n, n_embd] predicts target i."""
        parts = []
        for i in range(0, len(targets), CHUNK):
            chosen = np.asarray(targets[i : i + CHUNK])
            logits = self.logits(x[i : i + CHUNK])
            logits -= logits.max(axis=-1, keepdims=True)
            hit = logits[np.arange(len(chosen)), chosen].astype(np.float64)
            np.exp(logits, out=logits)
            parts.append(np.log(logits.sum(axis=-1, dtype=np.float64)) - hit)
        return np.concatenate(parts)

    def run(self, tokens: npt.ArrayLike, left_out: Iterable[int] = ()) -> Array:
        """Return the stream after the last block, [n_windows, n_tokens, n_embd]."""
        x = self.embed(tokens)
        for il in sorted(set(range(len(self.blocks))) - set(left_out)):
            x = self.block(il, x)
        return x


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    scale = 1 / np.sqrt(np.einsum("...i,...i->...", x, x) / x.shape[-1] + np.float32(eps))
    return x * scale[..., None] * weight


def attention(q: Array, k: Array, v: Array) -> Array:
    """Causal attention of one window: q [n_head, n, d], k and v [n_kv, n, d], each shared by n_head/n_kv."""
    n_head, n, d = q.shape
    q = q.reshape(len(k), n_head // len(k), n, d) * np.float32(d**-0.5)
    k, v = k[:, None].swapaxes(-1, -2), v[:, None]
    future = np.triu(np.full((CHUNK, CHUNK), -np.inf, np.float32), 1)
    out = np.empty_like(q)
    for i in range(0, n, CHUNK):
        end = min(i + CHUNK, n)
        weights = q[:, :, i:end] @ k[..., :end]
        weights[..., i:] += future[: end - i, : end - i]
        weights -= weights.max(axis=-1, keepdims=True)
        np.exp(weights, out=weights)
        weights /= weights.sum(axis=-1, keepdims=True)
        out[:, :, i:end] = weights @ v[:, :, :end]
    return out.reshape(n_head, n, d)


def load(path: Path) -> Model:
    """Read and dequantise a GGUF of architecture llama or qwen2.

    Raises:
        ValueError: a file with tensors or settings that this module does not implement.
    """
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if "tokenizer" not in name}
    arch = fields["general.architecture"]
    if arch not in ("llama", "qwen2"):
        raise ValueError(f"{path}: architecture {arch} is not llama or qwen2")
    found = {str(tensor.name): tensor for tensor in reader.tensors}
    unknown = [
        name for name in found if name not in WHOLE and re.sub(r"blk\.\d+\.", "", name) not in IN_BLOCK
    ]
    extra = [key for key in fields if ".rope.scaling." in key or "sliding" in key or ".expert" in key]
    if unknown or extra:
        raise ValueError(f"{path}: not implemented: {', '.join(unknown + extra)}")

    def read(name: str) -> Array:
        tensor = found[name]
        return dequantize(tensor.data, tensor.tensor_type).astype(np.float32)

    def block(il: int) -> Block:
        def stacked(*names: str) -> Array:
            return np.concatenate([read(f"blk.{il}.{name}") for name in names])

        bias = f"blk.{il}.attn_q.bias" in found
        return Block(
            attn_norm=stacked("attn_norm.weight"),
            qkv=stacked("attn_q.weight", "attn_k.weight", "attn_v.weight"),
            qkv_bias=stacked("attn_q.bias", "attn_k.bias", "attn_v.bias") if bias else None,
            attn_output=stacked("attn_output.weight"),
            ffn_norm=stacked("ffn_norm.weight"),
            gate_up=stacked("ffn_gate.weight", "ffn_up.weight"),
            down=stacked("ffn_down.weight"),
        )

    n_head, n_embd = fields[f"{arch}.attention.head_count"], fields[f"{arch}.embedding_length"]
    n_dim = fields.get(f"{arch}.attention.key_length", n_embd // n_head)
    if fields.get(f"{arch}.rope.dimension_count", n_dim) != n_dim:
        raise ValueError(f"{path}: not implemented: a partial RoPE")
    embedding = read("token_embd.weight")
    return Model(
        blocks=[block(il) for il in range(fields[f"{arch}.block_count"])],
        embedding=embedding,
        output_norm=read("output_norm.weight"),
        head=read("output.weight") if "output.weight" in found else embedding,
        n_head=n_head,
        n_kv=fields.get(f"{arch}.attention.head_count_kv", n_head),
        eps=fields[f"{arch}.attention.layer_norm_rms_epsilon"],
        freq_base=fields.get(f"{arch}.rope.freq_base", 10000.0),
        interleaved=arch == "llama",
    )
