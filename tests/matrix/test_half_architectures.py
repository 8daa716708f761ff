"""Every architecture with halves of blocks left out: bit for bit what the unpatched library computes where
their last products are zero, or refused with a reason.

By default a few sets of each model; LLAMA_SKIP_MATRIX=all takes every set, some minutes more.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.matrix.arch_files import Base, make, write
from support.matrix.architectures import DOCS, MODELS
from support.matrix.halves import check

from comparison.builds import Build

ROWS = [line.strip("| ").split(" | ") for line in DOCS.read_text().splitlines() if line.startswith("| ")]
REFUSED = {row[1] for row in ROWS if row[-1].startswith("all: ")}
EVERY = os.environ.get("LLAMA_SKIP_MATRIX") == "all"


@pytest.mark.parametrize("name", sorted({*MODELS} - REFUSED))
def test_halves_left_out_of(
    stock: Build, ours: Build, bases: dict[str, Base], tmp_path: Path, name: str
) -> None:
    model = make(stock, tmp_path, bases, name)
    path = write(tmp_path / "model.gguf", model.arch, model.metadata, model.tensors)
    check(stock, ours, model, path, every=EVERY)
    for file in tmp_path.glob("*.gguf"):
        file.unlink()
