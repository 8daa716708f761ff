"""Which model, and which file of it, something was measured on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_skip import _core
from llama_skip.files.store import StrPath
from llama_skip.skipset import Half


@dataclass(frozen=True)
class Identity:
    """What a score, plan or evaluation is about, "" or 0 where it is not known.

    `docs/metadata.md` defines the two hashes.

    Attributes:
        name: the file's name, without its folder.
        model_id: hash of architecture, block count, width, tensor names and shapes, and vocabulary.
        file_id: hash of the model's and of tensor types and a few small tensors.
        architecture: llama.cpp's name of it.
        n_layer, n_embd, n_vocab: blocks in the file, width of the residual stream, tokens.
        file_type: llama.cpp's name of the quantization.
        weights_bytes: of all tensors.
    """

    name: str = ""
    model_id: str = ""
    file_id: str = ""
    architecture: str = ""
    n_layer: int = 0
    n_embd: int = 0
    n_vocab: int = 0
    file_type: str = ""
    weights_bytes: int = 0


@dataclass(frozen=True)
class TextInfo:
    """The text that something was measured on.

    Attributes:
        source: "file", or "self" for the model's own writing.
        name: of the file, or how the model's own writing was made.
        sha256: of the token ids as little-endian int32.
        n_tokens, n_ctx, n_windows: tokens used, in a window, and windows.
        n_scored: tokens whose prediction counts.
    """

    source: str
    name: str
    sha256: str
    n_tokens: int
    n_ctx: int
    n_windows: int
    n_scored: int


def identify(path: StrPath) -> Identity:
    """Return the identity of a GGUF file, the first one of a split model; reads under 1 MiB of weights.

    Raises:
        FileNotFoundError: no such file.
        llama_skip.ModelLoadError: not a GGUF file, or a part of a split model is missing.
    """
    found = _core.identify(os.fsencode(path))
    return Identity(name=Path(path).name, **{key: found[key] for key in _FIELDS})


_FIELDS = [key for key in Identity.__dataclass_fields__ if key != "name"]


def block_bytes(path: StrPath) -> list[int]:
    """Return the bytes of each block's weights in a GGUF file, [n_layer]."""
    found = _core.identify(os.fsencode(path))
    sizes = [0] * int(found["n_layer"])
    for _, n_bytes, _, block, _ in found["tensors"]:
        if 0 <= block < len(sizes):
            sizes[block] += n_bytes
    return sizes


def half_bytes(path: StrPath) -> dict[tuple[int, Half], int]:
    """Return the bytes that leaving out each half of a block saves, of those halves that have weights."""
    found = _core.identify(os.fsencode(path))
    sizes: dict[tuple[int, Half], int] = {}
    for _, n_bytes, _, block, half in found["tensors"]:
        if 0 <= block < int(found["n_layer"]) and half:
            sizes[block, half] = sizes.get((block, half), 0) + n_bytes
    return sizes


def check_known(
    content: Mapping[str, Any], path: StrPath, needed: Sequence[str] = ("model_id", "file_id")
) -> None:
    """Raise ValueError where a JSON file does not say which model it is about.

    Args:
        content: of the file.
        path: the file, for messages.
        needed: what it has to say.
    """
    model = content.get("model")
    missing = [key for key in needed if not isinstance(model, dict) or not model.get(key)]
    if missing:
        raise ValueError(f"{path}: does not say which model it is about: {missing[0]} is missing")


def check_same(found: Identity, wanted: Identity, what: str) -> str:
    """Return a line to show where only the file differs, "" where nothing does.

    Args:
        found: what a score or plan is about.
        wanted: the model it is to be used with.
        what: how the message names the score or plan.

    Raises:
        ValueError: another model.
    """
    if found.model_id != wanted.model_id:
        raise ValueError(
            f"{what} is about another model: {_named(found, *_model_words(found))}, "
            f"not {_named(wanted, *_model_words(wanted))}"
        )
    if found.file_id != wanted.file_id:
        return (
            f"{what} was made with {_named(found, found.file_type)}: same architecture and shapes, "
            "other weights (another quantization, or a fine-tune)"
        )
    return ""


def _model_words(model: Identity) -> list[str]:
    size = f"{model.n_layer} blocks of width {model.n_embd}" if model.n_layer and model.n_embd else ""
    return [model.architecture, size, f"model {model.model_id}"]


def _named(model: Identity, *words: str) -> str:
    """Return a file's name and what is known of it."""
    known = ", ".join(filter(None, words))
    if model.name:
        return f"{model.name} ({known})" if known else model.name
    return known or "another file"
