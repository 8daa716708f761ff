"""Every architecture with blocks on disk: bit for bit the whole model, and with a scale bit for bit what the
unpatched library computes when the output of these blocks is overwritten, or refused with a reason.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.disk_oracle import found_rows, scaled_rows
from support.matrix.arch_cases import EMBEDDINGS
from support.matrix.arch_files import Base, make, write
from support.matrix.architectures import MODELS

from comparison.builds import Build

# why blocks are not scaled, by the words of the error
REASONS = [
    "cannot be on disk",
    "itself, only a scale of 0 or 1",
    "in 2 loops",
    "does not show what the residual",
]


@pytest.mark.parametrize("name", MODELS)
def test_disk_blocks_of(stock: Build, ours: Build, bases: dict[str, Base], tmp_path: Path, name: str) -> None:
    model = make(stock, tmp_path, bases, name)
    path = write(tmp_path / "model.gguf", model.arch, model.metadata, model.tensors)
    embeddings, n = model.arch in EMBEDDINGS, model.n_layer
    if n == 0:
        pytest.skip("a draft head without blocks of its own")
    every = f"0-{n - 1}"
    for flash in ("off", "on"):
        found = ours.worker.call(found_rows, path, {"skip.disk": every}, embeddings=embeddings, flash=flash)
        if isinstance(found, str):
            assert "cannot be on disk" in found
            return
        whole = stock.worker.call(found_rows, path, {}, embeddings=embeddings, flash=flash)
        assert np.array_equal(found, whole), f"{name} on disk, flash attention {flash}"

    for blocks in dict.fromkeys([(n // 2,), (0,), (n - 1,), tuple(range(n))]):
        spec = ",".join(map(str, blocks))
        overrides = {"skip.disk": spec, "skip.disk_scale": "0.625"}
        found = ours.worker.call(found_rows, path, overrides, embeddings=embeddings)
        if isinstance(found, str):
            assert any(reason in found for reason in REASONS), found
            continue
        expected = stock.worker.call(scaled_rows, path, dict.fromkeys(blocks, 0.625), embeddings=embeddings)
        assert np.array_equal(found, expected), f"{name} with block {spec} scaled"
        assert not np.array_equal(found, whole)
    for file in tmp_path.glob("*.gguf"):
        file.unlink()
