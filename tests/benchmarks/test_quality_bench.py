"""The benchmark that compares ways to choose blocks and to fill their gaps."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from llama_skip import read_evaluation
from llama_skip.plan.file import read_plan
from support.shared.plain import N_CTX, plain

from comparison.stock_build import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import quality

__all__ = ["plain"]  # a fixture
N_TOKENS = 4 * N_CTX


@pytest.fixture(scope="module")
def run(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder and the rows of a run on a tiny model."""
    folder = tmp_path_factory.mktemp("run")
    text = folder / "text.txt"
    text.write_text("".join(f"The train number {i} went from {i + 7} to {i * i}.\n" for i in range(90)))
    sizes = [
        word for name in ("tokens", "heal-tokens", "judge-tokens") for word in (f"--{name}", str(N_TOKENS))
    ]
    args = [str(plain), "-f", str(text), "-d", str(folder), *sizes, "-c", str(N_CTX), "-t", "1", "--json"]
    with (folder / "out.json").open("w") as out:
        stdout, sys.stdout = sys.stdout, out
        try:
            code = quality.main(
                [*args, "--ways", "greedy", "angular", quality.HEALING, "--shares", "0.3", "--quant", "F16"]
            )
        finally:
            sys.stdout = stdout
    rows: list[dict[str, Any]] = json.loads((folder / "out.json").read_text())["plain.gguf"]
    assert code == int(any(row[text].get("missed") for row in rows for text in quality.TEXTS))
    return folder, rows


def test_every_choice_with_every_fill(run: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, rows = run
    assert [row["way"] for row in rows[:2]] == ["full model", "F16"]
    assert [(row["way"], row["fill"]) for row in rows[2:]] == [
        *((way, fill) for way in ("greedy", "angular") for fill in quality.FILLS),
        (quality.HEALING, "healed"),
    ]
    full = rows[0]["judging"]["perplexity"]
    identity = next(row for row in rows[2:] if row["fill"] == "identity")
    for row in rows[2:-1]:
        d = math.log(row["judging"]["perplexity"] / full)
        expected = math.log(identity["judging"]["perplexity"] / full)
        assert row["judging"]["d"] == pytest.approx(d)
        if expected > 0:
            assert row["judging"]["ratio"] == pytest.approx(d / expected)
        bound = quality.BOUNDS.get((row["fill"], "judging")) if row["way"] == "greedy" else None
        assert row["judging"]["missed"] == (bound is not None and d > bound * expected)
    lines = list(quality.table(Path("plain.gguf"), rows))
    assert len(lines) == len(rows) + 3 and lines[0] == "plain.gguf\n"
    assert {line.count("|") for line in lines[1:]} == {17}
    found = read_evaluation(folder / "plain.judging.eval.json")
    assert found.text.name == "judging.txt" and found.complete


def test_a_miss_stands_behind_what_missed(run: tuple[Path, list[dict[str, Any]]]) -> None:
    _, rows = run
    missed = [{**row, "judging": {**row["judging"], "missed": True}} for row in rows[2:]]
    _, head, _, *lines = quality.table(Path("plain.gguf"), [rows[0], *missed])
    names = head.split(" | ")
    for row, line in zip(missed, lines[1:], strict=True):
        marked = [name for name, cell in zip(names, line.split(" | "), strict=True) if "(missed)" in cell]
        assert marked[0] == ("KL" if row["way"] == quality.HEALING else "d ratio")


def test_the_baselines_are_what_they_are_called(run: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, rows = run
    blocks = next(row["blocks"] for row in rows if row["way"] == "greedy")
    plans = {
        fill: read_plan(folder / f"plain.{blocks}.{fill.replace(' ', '-')}.plan") for fill in quality.FILLS
    }
    assert len({plan.skip_layers for plan in plans.values()}) == 1
    assert not plans["identity"].bypass and not plans["identity"].skip_scale
    assert plans["norm ratio"].skip_scale and not plans["norm ratio"].bypass
    assert not plans["scale"].bypass
    for part in plans["full map"].bypass:
        n_embd = plans["full map"].model.n_embd
        assert (part.rank, part.norm_eps) == (n_embd, None)
    assert plans["healed"].found.heal


def test_a_given_text_is_never_written_over(plain: Path, tmp_path: Path) -> None:
    text = tmp_path / "choosing.txt"
    text.write_text("as\nit\nwas\n")
    with pytest.raises(SystemExit) as err:
        quality.main([str(plain), "-f", str(text), "-d", str(tmp_path)])
    assert err.value.code == 2 and text.read_text() == "as\nit\nwas\n"
    assert not (tmp_path / "judging.txt").exists()
