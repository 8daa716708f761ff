"""Tiny random models: upstream's generated ones with more blocks, and those of arch_recipes.py."""

from __future__ import annotations

import os
import re
import subprocess
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from support.matrix.arch_recipes import COMMON, COMPUTED, DEEPER, NEXTN, RECIPES
from support.shapes import shapes

from comparison.builds import Build

FIXED_LISTS = {"rope.dimension_sections", "ple.layers", "tokenizer.ggml.tokens", "tokenizer.ggml.scores"}
Entry = tuple[str, Any, GGUFValueType, "GGUFValueType | None"]
KINDS = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}


@dataclass(frozen=True)
class Model:
    name: str
    arch: str
    metadata: list[Entry]
    tensors: dict[str, np.ndarray]

    def value(self, key: str, default: Any = None) -> Any:
        return next((v for k, v, *_ in self.metadata if k == f"{self.arch}.{key}"), default)

    @property
    def n_layer(self) -> int:
        """The blocks of the trunk: NextN blocks are behind them."""
        return int(self.value("block_count") - self.value("nextn_predict_layers", 0))


def entry(key: str, value: Any) -> Entry:
    item = value[0] if isinstance(value, list) else value
    kind = GGUFValueType[KINDS[type(item)]]
    return (key, value, GGUFValueType.ARRAY, kind) if isinstance(value, list) else (key, value, kind, None)


def write(path: Path, arch: str, metadata: Iterable[Entry], tensors: dict[str, np.ndarray]) -> Path:
    writer = GGUFWriter(path, arch)
    for key, value, kind, item_kind in metadata:
        if value != []:
            writer.add_key_value(key, value, kind, sub_type=item_kind)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random values like upstream's: normal, ssm_a (state decay) negative, norms and scales near 1."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    data = random.normal(0.0, 0.1, shape).astype(np.float32)
    if "ssm_a" in name:
        return -np.abs(data)
    if re.search(r"norm.*\.weight|output_scale|\.scale$", name):
        return data + np.float32(1.0)
    return data


def fill(
    stock: Build, folder: Path, name: str, arch: str, metadata: list[Entry], wanted: re.Pattern[str]
) -> Model:
    """The model that `metadata` describes, with random weights in the tensors whose names `wanted` finds."""
    empty = write(folder / f"{name}-metadata.gguf", arch, metadata, {})
    found = stock.worker.call(shapes, empty)
    empty.unlink()
    return Model(name, arch, metadata, {n: weights(n, s) for n, s in found.items() if wanted.search(n)})


def from_recipe(stock: Build, folder: Path, name: str) -> Model:
    recipe = RECIPES[name]
    metadata = [
        entry("tokenizer.ggml.model", "test"),
        entry("tokenizer.ggml.tokens", [f"tok_{i}" for i in range(recipe.n_vocab)]),
        entry("tokenizer.ggml.scores", [0.0] * recipe.n_vocab),
    ]
    own = {**COMMON, "block_count": recipe.n_layer, "vocab_size": recipe.n_vocab, **recipe.metadata}
    for key, value in own.items():
        metadata.append(entry(key[1:] if key.startswith(".") else f"{recipe.arch}.{key}", value))
    if not recipe.tensors:
        return Model(name, recipe.arch, metadata, {})
    return fill(stock, folder, name, recipe.arch, metadata, re.compile(f"^(?!.*(?:{recipe.drop}))"))


@dataclass(frozen=True)
class Base:
    """What a generated file says: its metadata, and the names of its tensors without the numbers in them."""

    arch: str
    metadata: list[Entry]
    names: frozenset[str]


def read_base(path: Path) -> Base:
    reader = GGUFReader(path)
    arch = str(reader.fields["general.architecture"].contents())
    metadata = [
        (f.name, f.contents(), f.types[0], f.types[1] if len(f.types) > 1 else None)
        for f in reader.fields.values()
        if not f.name.startswith("GGUF.") and f.name != "general.architecture"
    ]
    return Base(arch, metadata, frozenset(re.sub(r"\d+", "#", t.name) for t in reader.tensors))


def generated_one(stock: Build, arch: str, folder: Path) -> Path:
    """The small random model that upstream's generator writes for an architecture."""
    done = stock.run("test-llama-archs", "-a", arch, "-s", 1, "-o", folder)
    assert done.returncode == 0, done.stderr
    return next(folder.glob(f"{arch}-*.gguf"))


def generated(stock: Build, folder: Path) -> dict[str, Base]:
    """What upstream's generator writes, 1 GB in `folder`; LLAMA_SKIP_ARCHS names a folder that has it."""
    given = os.environ.get("LLAMA_SKIP_ARCHS")
    if not given:
        halves = [
            subprocess.Popen(
                [stock.tool("test-llama-archs"), "-o", folder, "-s", "1234", "-a", half],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for half in ("^[a-h]", "^[^a-h]")
        ]
        assert [half.wait() for half in halves] == [0, 0]
    return {path.stem: read_base(path) for path in Path(given or folder).glob("*.gguf")}


def deeper(stock: Build, folder: Path, bases: dict[str, Base], name: str) -> Model:
    """A generated model with more blocks, as DEEPER says: the same metadata, per-layer lists repeated."""
    if name.endswith("-nextn"):
        return with_nextn(deeper(stock, folder, bases, name.removesuffix("-nextn")))
    own = dict(COMPUTED.get(name) or DEEPER.get(name, {}))
    base = bases[own.pop("base", name)]
    change = {**DEEPER["*"], **own}
    n_old = next(v for k, v, *_ in base.metadata if k == f"{base.arch}.block_count")
    metadata: dict[str, Entry] = {}
    for full, value, kind, item_kind in base.metadata:
        key = full.removeprefix(f"{base.arch}.")
        if change.get(key, ...) is None:
            continue
        if isinstance(change.get(key), list):
            kind, item_kind = GGUFValueType.ARRAY, item_kind or kind
            value = change[key]
        elif key in change and not isinstance(value, list):
            value = change[key]
        elif isinstance(value, list) and len(value) == n_old and key not in FIXED_LISTS:
            value = (value * change["block_count"])[: change["block_count"]]
        metadata[key] = (full, value, kind, item_kind)
    for key in own.keys() - metadata.keys():
        if own[key] is not None:
            metadata[key] = entry(f"{base.arch}.{key}", own[key])
    model = fill(stock, folder, name, base.arch, list(metadata.values()), re.compile(""))
    tensors = {n: t for n, t in model.tensors.items() if re.sub(r"\d+", "#", n) in base.names}
    return Model(name, base.arch, model.metadata, tensors)


def make(stock: Build, folder: Path, bases: dict[str, Base], name: str) -> Model:
    return from_recipe(stock, folder, name) if name in RECIPES else deeper(stock, folder, bases, name)


def with_nextn(model: Model) -> Model:
    """The model with a NextN block behind its trunk: a block of it again, and what joins the two."""
    n, n_embd, source = model.n_layer, model.value("embedding_length"), NEXTN[model.name]
    tensors = dict(model.tensors)
    for name, data in model.tensors.items():
        if name.startswith(f"blk.{source}.") and not name.endswith("scale"):
            tensors[name.replace(f"blk.{source}.", f"blk.{n}.", 1)] = data
    joins = {
        "eh_proj": (n_embd, 2 * n_embd),
        "enorm": (n_embd,),
        "hnorm": (n_embd,),
        "shared_head_norm": (n_embd,),
    }
    for name, shape in joins.items():
        tensors[f"blk.{n}.nextn.{name}.weight"] = weights(name, shape)
    if model.arch == "bailingmoe2":
        tensors[f"blk.{n}.layer_output_norm.weight"] = weights("layer_output_norm.weight", (n_embd,))
    key = f"{model.arch}.nextn_predict_layers"
    metadata = [entry(key, 1)]
    for name, value, *kinds in model.metadata:
        if name == f"{model.arch}.block_count":
            value += 1
        elif isinstance(value, list) and len(value) == model.n_layer and name.startswith(model.arch):
            value = [*value, value[source]]
        if name != key:
            metadata.append((name, value, *kinds))
    return Model(f"{model.name}-nextn", model.arch, metadata, tensors)
