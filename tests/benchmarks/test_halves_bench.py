"""The benchmark that compares a choice of blocks and halves with one of blocks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from llama_skip.files.identity import block_bytes, half_bytes
from llama_skip.skipset import parse_layers
from support.shared.scores import N_CTX, N_WINDOWS, model, text

from comparison.stock_build import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import halves

__all__ = ["model", "text"]  # fixtures


def test_all_ways_stay_within_the_bytes_of_blocks(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n_tokens = str(N_CTX * N_WINDOWS // 2)
    args = [
        model,
        "-f",
        text,
        "--judge",
        text,
        "-d",
        tmp_path,
        "--tokens",
        n_tokens,
        "--judge-tokens",
        n_tokens,
    ]
    code = halves.main([str(arg) for arg in (*args, "-c", N_CTX, "-t", 1, "--json")])
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)[model.name]
    assert code == int(any(row["missed"] for row in rows))
    assert [row["way"] for row in rows] == [*halves.PATHS] * 3
    sizes = {**dict(enumerate(block_bytes(model))), **half_bytes(model)}
    for blocks, mixed, kv in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        for row in (blocks, mixed, kv):
            units = parse_layers(row["set"])
            assert row["bytes"] == sum(sizes[unit] for unit in units)
            with_cache = [u for u in units if isinstance(u, int) or u[1] == "attn"]
            assert row["kv"] == len(with_cache) * blocks["kv"] / len(parse_layers(blocks["set"]))
            assert row["ratio"] == pytest.approx(row["kld"] / blocks["kld"])
        assert mixed["bytes"] <= blocks["bytes"] and kv["kv"] <= blocks["kv"]
        bound = halves.MOST if mixed["set"] == blocks["set"] else halves.DIFFERENT
        assert mixed["missed"] == (mixed["ratio"] > bound)
    assert len(list(halves.table(model, rows))) == len(rows) + 3
