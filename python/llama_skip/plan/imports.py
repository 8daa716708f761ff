"""`llama-skip import`: plans from what other projects write.

- layerinfo.json of the public llama.cpp fork with --skip-layers: an imatrix score for each block, and lists
  for some numbers of blocks.
- skip_layers.json of SWIFT and of self-speculative decoding: attention and feed-forward layers that a draft
  leaves out, by model and task; a block of which both go is left out whole.
- block_order.csv of shortened-llm: one row of blocks, the first to go first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_skip.files import identity
from llama_skip.files.identity import Identity
from llama_skip.files.store import StrPath
from llama_skip.plan.file import Plan
from llama_skip.plan.found import Found
from llama_skip.skipset import Unit, ranges_text, resolve


def import_plan(
    path: StrPath, model: StrPath, *, n_blocks: int | None = None, entry: str | None = None
) -> Plan:
    """Return the plan for a model that another project's file stands for; the content says which project's.

    Args:
        path: a layerinfo.json, skip_layers.json or block_order.csv.
        model: the GGUF file that the plan is for.
        n_blocks: how many blocks to leave out; for a file with an order or scores.
        entry: which model and task of a skip_layers.json that has several.

    Raises:
        ValueError: none of these formats, blocks that the model has not or refuses, an argument that is
            missing or does not fit.
        FileNotFoundError: no such file or model.
        llama_skip.ModelLoadError: the model is not a GGUF file.
    """
    about = identity.identify(model)
    text = Path(path).read_text(encoding="utf-8", errors="replace").strip()
    content = _json(text, path) if text.startswith(("{", "[")) else None
    name = Path(path).name
    if content is None:
        _no_entry(entry, name)
        blocks, found = _from_order(text, name, about, n_blocks)
    elif isinstance(content, dict) and isinstance(content.get("layers"), list):
        _no_entry(entry, name)
        blocks, found = _from_layerinfo(content, name, about, n_blocks)
    elif isinstance(content, dict) and content and all(map(_is_swift, content.values())):
        blocks, found = _from_swift(content, name, about, n_blocks, entry)
    else:
        raise ValueError(f"{name}: neither a layerinfo.json nor a skip_layers.json")
    resolve(model, ranges_text(blocks), "")
    return Plan(about, ranges_text(blocks), found=replace(found, imported=name))


def _json(text: str, path: StrPath) -> Any:
    try:
        return json.loads(text)
    except ValueError as err:
        raise ValueError(f"{path}: not a JSON file: {err}") from None


def _no_entry(entry: str | None, name: str) -> None:
    if entry is not None:
        raise ValueError(f"{name} has no entries, one is chosen only from a skip_layers.json")


def _blocks(values: Sequence[Any], name: str, about: Identity) -> list[int]:
    """Return block numbers, checked against the model."""
    for il in values:
        if isinstance(il, bool) or not isinstance(il, int):
            raise ValueError(f"{name}: {il!r} is not the number of a block")
        if not 0 <= il < about.n_layer:
            raise ValueError(
                f"{name}: block {il} is out of range, {about.name} has blocks 0-{about.n_layer - 1}"
            )
    if len(set(values)) != len(values):
        raise ValueError(f"{name}: a block is named twice")
    return list(values)


def _first(order: Sequence[int], n_blocks: int | None, name: str) -> list[int]:
    if n_blocks is None:
        raise ValueError(f"{name} has an order of blocks: say how many to leave out with --blocks")
    if not 1 <= n_blocks <= len(order):
        raise ValueError(f"{name}: {n_blocks} blocks are not possible, it orders {len(order)}")
    return list(order[:n_blocks])


Chosen = tuple[Sequence[Unit], Found]


def _from_order(text: str, name: str, about: Identity, n_blocks: int | None) -> Chosen:
    rows = [row for row in text.splitlines() if row.strip()]
    if len(rows) != 1:
        raise ValueError(f"{name}: expected one row of blocks separated by commas, found {len(rows)} rows")
    try:
        order = [int(item) for item in rows[0].split(",")]
    except ValueError:
        raise ValueError(f"{name}: expected one row of blocks separated by commas, nor is it JSON") from None
    return _first(_blocks(order, name, about), n_blocks, name), Found("shortened-llm")


def _from_layerinfo(content: dict[str, Any], name: str, about: Identity, n_blocks: int | None) -> Chosen:
    """As the fork's --skip-layers-budget: its own list, else the most similar blocks, never the last one."""
    found = Found("layerinfo", score=str(content.get("method", "")))
    last = content.get("n_layer", about.n_layer)
    if last != about.n_layer:
        raise ValueError(f"{name} is about a model of {last} blocks, {about.name} has {about.n_layer}")
    lists = content.get("recommended_skip")
    given = lists.get(str(n_blocks)) if isinstance(lists, dict) else None
    if isinstance(given, list) and given:
        blocks = _blocks(given, name, about)
        if len(blocks) == n_blocks:
            return blocks, found
    scores = [_influence(layer, name) for layer in content["layers"]]
    _blocks([il for il, _ in scores], name, about)
    order = [il for il, _ in sorted(scores, key=lambda s: (s[1], s[0])) if il != about.n_layer - 1]
    return _first(order, n_blocks, name), found


def _influence(layer: Any, name: str) -> tuple[int, float]:
    """Return a block and how much it does: 1 - cosine, or an angle where there is no cosine."""
    try:
        value = 1 - float(layer["cossim"]) if "cossim" in layer else float(layer["bi"])
        block = layer["layer"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{name}: expected a layer with its cossim or bi, found {layer!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"{name}: layer {block} has no finite score")
    return block, value


def _is_swift(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(part), list) for part in ("attention", "mlp"))


def _from_swift(
    content: dict[str, Any], name: str, about: Identity, n_blocks: int | None, entry: str | None
) -> Chosen:
    if n_blocks is not None:
        raise ValueError(f"{name} has sets, not an order: --blocks cannot choose from them")
    if entry is None and len(content) > 1:
        raise ValueError(f"{name} has several entries, name one with --entry: {', '.join(content)}")
    chosen = next(iter(content)) if entry is None else entry
    if chosen not in content:
        raise ValueError(f"{name} has no entry {chosen!r}, it has {', '.join(content)}")
    attention, mlp = (
        set(_blocks(content[chosen][part], f"{name}, {chosen}", about)) for part in ("attention", "mlp")
    )
    units: list[Unit] = [*(attention & mlp)]
    units += [(il, "attn") for il in attention - mlp]
    units += [(il, "ffn") for il in mlp - attention]
    if not units:
        raise ValueError(f"{name}, {chosen}: nothing is left out")
    return units, Found("swift", entry=chosen)
