"""What stands in a file without some of its blocks, the others numbered anew."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from gguf import GGUFValueType as Kind

from llama_skip.bake import renumbering
from llama_skip.bake.renumbering import PER_BLOCK, Model
from llama_skip.files.gguf import Entry, Gguf, Tensor, item_kind, make_array, make_entry

XIELU = {"xielu.alpha_n", "xielu.alpha_p", "xielu.beta", "xielu.eps"}
# lists that have as many items as there are blocks only by accident
FIXED = re.compile(r"rope\.dimension_sections|adapters\..*|ple\..*|target_layers|classifier\..*")
# blocks at the beginning that are of another kind
LEADING = {"leading_dense_block_count", "hash_layer_count"}


def baked_entries(gguf: Gguf, out: Collection[int]) -> dict[str, Entry]:
    """Return the metadata of the model without blocks `out`.

    Args:
        gguf: the model.
        out: blocks of its trunk, a set that llama.cpp's side accepts.

    Raises:
        ValueError: the unpatched llama.cpp would compute something else.
    """
    m = Model(gguf)
    kept = [il for il in range(m.n) if il not in out]
    renumbering.check(m, kept, out)
    entries = {k: e for k, e in gguf.entries.items() if not k.startswith("skip.")}
    for key, entry in list(entries.items()):
        name = key.removeprefix(f"{m.arch}.")
        if key in XIELU or name != key:
            entries[key] = _spliced(m, name, entry, out)
    for entry in _written(m, kept):
        entries[entry.key] = entry
    return entries


def _spliced(m: Model, name: str, entry: Entry, out: Collection[int]) -> Entry:
    value = entry.value
    if entry.kind != Kind.ARRAY:
        count = _count(m, name, value, out)
        return entry if count is value else make_entry(entry.key, entry.kind, count)
    if name == "ple.layers":
        new = [il - len([o for o in out if o < il]) for il in value]
    elif name in PER_BLOCK or (len(value) in (m.n, m.n_all) and not FIXED.fullmatch(name)):
        new = [v for il, v in enumerate(value) if il not in out]
    else:
        return entry
    return make_array(entry.key, item_kind(entry), new)


def _count(m: Model, name: str, value: Any, out: Iterable[int]) -> Any:
    if name == "block_count":
        return value - len(list(out))
    if name in LEADING:
        return value - len([il for il in out if il < value])
    if name == "attention.shared_kv_layers":
        return value - len([il for il in out if il >= m.n - value])
    return value


def _written(m: Model, kept: list[int]) -> Iterable[Entry]:
    """Yield lists that stand for what llama.cpp would compute otherwise from the new numbers."""
    rest = [False] * (m.n_all - m.n)
    for key, by_rule in (
        ("attention.sliding_window_pattern", m.windows),
        ("attention.recurrent_layers", m.recurrent),
    ):
        old, new = by_rule(m.n), by_rule(len(kept))
        if old is not None and [old[il] for il in kept] != new:
            yield make_array(f"{m.arch}.{key}", Kind.BOOL, [*(old[il] for il in kept), *rest])
    if m.arch == "minicpm" and m.get("residual_scale") is None:
        scale = np.float32(1.4) / np.sqrt(np.float32(m.n))
        yield make_entry(f"{m.arch}.residual_scale", Kind.FLOAT32, float(scale))


def baked_tensors(gguf: Gguf, out: Collection[int]) -> list[Tensor]:
    """Return the tensors that stay, with new numbers in their names."""
    kept = []
    for t in gguf.tensors:
        match = re.fullmatch(rb"((?:enc\.)?blk\.)(\d+)(\..*)", t.name, re.DOTALL)
        if not match:
            kept.append(t)
        elif int(match[2]) not in out:
            new = int(match[2]) - len([il for il in out if il < int(match[2])])
            kept.append(replace(t, name=b"%s%d%s" % (match[1], new, match[3])))
    return kept
