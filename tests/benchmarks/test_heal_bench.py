"""The benchmark of what healing costs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from llama_skip.files.identity import block_bytes
from llama_skip.heal import heal as healing
from support.shared.scores import N_CTX, N_WINDOWS, model, text

from comparison.stock_build import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import heal

__all__ = ["model", "text"]  # fixtures


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, dict[str, Any]]:
    code = heal.main([*map(str, args), "-c", str(N_CTX), "-t", "1", "--runs", "2", "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == int(bool(found["missed"]))
    return code, found


def test_a_plan_that_is_healed_first(model: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = run(capsys, model, "--skip-layers", "2-3,5", "-f", text, "--tokens", N_CTX * N_WINDOWS)
    times, speed, size = found["time"], found["speed"], found["bytes"]
    assert times["ratio"] == pytest.approx(times["heal_s"] / 2 / times["evaluation_s"])  # two gaps
    assert speed["a"] > 0 < speed["b"] and speed["n"] == 2
    assert size["left_out"] == sum(block_bytes(model)[il] for il in (2, 3, 5))
    assert size["ratio"] == size["tensors"] / size["left_out"]
    assert ("time" in found["missed"]) == (times["ratio"] > 3)


def test_a_plan_that_is_there(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.gguf"
    plan = healing.heal_plan(
        model, skip_layers="2-3", text=text, output=path, n_tokens=N_CTX * N_WINDOWS, n_ctx=N_CTX, n_threads=1
    )
    _, found = run(capsys, model, "--plan", path)
    assert "time" not in found and found["skip_layers"] == "2-3"
    assert found["bytes"]["tensors"] == sum(part.n_bytes for part in plan.bypass)
