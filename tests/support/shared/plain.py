"""Shared by tests of several folders."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from support.tiny import blocks, random_model

from comparison.stock_build import ROOT

sys.path.append(str(ROOT / "benchmarks"))

N_BLOCKS, N_CTX, N_TOKENS = 7, 32, 64


@pytest.fixture(scope="module")
def plain(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of small unquantised blocks that change the stream little, so that some can go."""
    shapes = blocks(N_BLOCKS, post_norm="ffn_norm")
    shapes = {name: shape for name, shape in shapes.items() if not re.search("_[qk]_norm", name)}
    path = tmp_path_factory.mktemp("choice") / "plain.gguf"

    def change(name: str, data: np.ndarray) -> np.ndarray:
        return data if "norm" in name else 0.3 * data

    return random_model(path, smollm2, "llama", N_BLOCKS, shapes, {}, change)
