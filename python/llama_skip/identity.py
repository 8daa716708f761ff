"""Which model, and which file of it, something was measured on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_skip import _core
from llama_skip.files import StrPath


@dataclass(frozen=True)
class Identity:
    """What a score, plan or evaluation is about; `docs/metadata.md` defines the two hashes.

    Attributes:
        name: the file's name, without its folder.
        model_id: hash of architecture, block count, width, tensor names and shapes, and vocabulary.
        file_id: hash of the model's and of tensor types and a few small tensors.
        architecture: llama.cpp's name of it.
        n_layer, n_embd, n_vocab: blocks in the file, width of the residual stream, tokens.
        file_type: llama.cpp's name of the quantization.
        weights_bytes: of all tensors.
    """

    name: str
    model_id: str
    file_id: str
    architecture: str
    n_layer: int
    n_embd: int
    n_vocab: int
    file_type: str
    weights_bytes: int


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
    for _, n_bytes, _, block in found["tensors"]:
        if 0 <= block < len(sizes):
            sizes[block] += n_bytes
    return sizes


def from_json(content: Mapping[str, Any], path: StrPath) -> Identity:
    """Return the identity in a JSON file.

    Raises:
        ValueError: something is missing.
    """
    try:
        return Identity(**content["model"])
    except (KeyError, TypeError):
        raise ValueError(f"{path}: does not say which model it is about") from None


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
            f"{what} is about another model: {found.name} ({found.architecture}, {found.n_layer} blocks of "
            f"width {found.n_embd}, model {found.model_id}), not {wanted.name} ({wanted.architecture}, "
            f"{wanted.n_layer} blocks of width {wanted.n_embd}, model {wanted.model_id})"
        )
    if found.file_id != wanted.file_id:
        return (
            f"{what} was made with {found.name} ({found.file_type}): same architecture and shapes, "
            "other weights (another quantization, or a fine-tune)"
        )
    return ""
