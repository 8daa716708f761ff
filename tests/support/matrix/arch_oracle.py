"""Two references for blocks left out of any architecture, both for the unpatched library.

The zeroed file: what a block adds to the residual stream is zero, what multiplies the whole stream
there stays. It is the reference wherever a block is a sum of branches.

The pruned file: the blocks are gone and the others renumbered, per-layer metadata with them. It is the
reference where a block also mixes streams or norms the stream (hyper-connections, AltUp, post-norm),
and it is right only for sets under which no kept block changes its kind by its new number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from support.matrix.arch_files import Model, write

WRITERS = re.compile(
    r"attn_o\b.*|attn_out.*|ffn_down.*|vis_attn_output.*|vis_down.*|ssm_out.*|time_mix_output.*|channel_mix_value.*"
    r"|shortconv\.out_proj.*|ple_value.*|.*post.*norm.*|layer_output_norm.*"
)
# per-layer by length only by accident
NOT_PER_LAYER = re.compile(r".*\.(rope\.dimension_sections|adapters\..*|ple\.[lh].*)")


def writes(name: str, arch: str) -> bool:
    """Whether a tensor of a block, named without its number, is what the block adds to the stream."""
    return bool(WRITERS.fullmatch(name)) or (arch == "talkie" and name.startswith("layer_output_scale"))


def zeroed(model: Model, path: Path, blocks: Iterable[int]) -> Path:
    out = set(blocks)

    def change(name: str, data: np.ndarray) -> np.ndarray:
        match = re.match(r"(?:enc\.)?blk\.(\d+)\.(.*)", name)
        return (
            np.zeros_like(data) if match and int(match[1]) in out and writes(match[2], model.arch) else data
        )

    return write(path, model.arch, model.metadata, {n: change(n, t) for n, t in model.tensors.items()})


def pruned(model: Model, path: Path, blocks: Iterable[int]) -> Path:
    out = set(blocks)
    arch, n = model.arch, model.n_layer
    kept = [il for il in range(n) if il not in out]
    place = {il: i for i, il in enumerate(kept)}
    metadata = []
    for key, value, *types in model.metadata:
        if key == f"{arch}.block_count":
            value = len(kept)
        elif key == f"{arch}.leading_dense_block_count":
            value -= len([il for il in out if il < value])
        elif key == f"{arch}.attention.shared_kv_layers":
            value -= len([il for il in out if il >= n - value])
        elif key == f"{arch}.ple.layers":
            value = [place[il] for il in value if il in place]
        elif isinstance(value, list) and len(value) == n and not NOT_PER_LAYER.fullmatch(key):
            value = [value[il] for il in kept]
        metadata.append((key, value, *types))
    tensors = {}
    for name, data in model.tensors.items():
        match = re.match(r"((?:enc\.)?blk\.)(\d+)(\..*)", name)
        if match and int(match[2]) in out:
            continue
        if name.startswith(
            ("per_layer_token_embd", "per_layer_model_proj")
        ):  # columns or rows of every block
            axis = 1 if name.startswith("per_layer_token_embd") else 0
            data = np.take(np.stack(np.split(data, n, axis)), kept, 0)
            data = np.concatenate(list(data), axis)
        tensors[f"{match[1]}{place[int(match[2])]}{match[3]}" if match else name] = data
    return write(path, arch, metadata, tensors)


def keeps_kinds(kept: Sequence[int], n_layer: int, period: int, slopes: bool) -> bool:
    """Whether kept blocks stay what they are under new numbers: by number modulo `period`, or by depth."""
    if slopes:  # MiniMax-01: the decay of a block goes by il / (n_layer - 1)
        return all(il * (len(kept) - 1) == i * (n_layer - 1) for i, il in enumerate(kept))
    return all(il % period == i % period for i, il in enumerate(kept))
