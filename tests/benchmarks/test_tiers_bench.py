"""The benchmark of llama-server with a depth for each request."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from comparison.stock_build import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import load
import tiers


def test_the_time_in_which_something_was_answered() -> None:
    assert load.busy([(5, 6), (0, 2), (1, 3), (1.5, 1.8)]) == 4


def test_the_summary_of_answers() -> None:
    answers = [
        load.Answer(i, i + 0.5, i + 1 + i / 10, i / 4, 10, "none" if i else "fast", "") for i in range(4)
    ]
    found = load.summary(answers, 5)
    assert found["latency"] == pytest.approx([1.15, 1.27, 1.297])
    assert found["queued"] == pytest.approx([0.375, 0.675, 0.7425])
    assert found["tokens_per_s"] == pytest.approx(40 / 4.3)
    assert found["shares"] == {"fast": 0.25, "none": 0.75} and found["lost"] == 1


def test_what_bytes_promise() -> None:
    shares, bytes_of = {"none": 0.5, "fast": 0.5}, {"none": 1.0, "fast": 0.5}
    assert load.promised(shares, bytes_of, 1.0) == pytest.approx(4 / 3)
    assert load.promised(shares, bytes_of, 0.4) == pytest.approx(1 / (0.6 + 0.4 * 0.75))


def test_the_command(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, png = tmp_path / "text.txt", tmp_path / "load.png"
    text.write_text("".join(f"The train number {i} went from {i + 7} to {i * i}.\n" for i in range(900)))
    args = [str(tiny), "-f", str(text), "--skip-tier", "fast=1", "faster=1-2", "--png", str(png)]
    sizes = ["--runs", "1", "--seconds", "1", "--requests", "24", "-np", "2", "--overload", "4", "-t", "1"]
    code = tiers.main([*args, *sizes, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == int(any(map(tiers.missed, found["rows"])))
    parts = [row["part"] for row in found["rows"]]
    assert parts == ["switch", "plain", "plain", "fair", "fair", "fair", "load", "load", "load"]
    assert all(row["value"] > 0 for row in found["rows"][:6])
    (share, *_) = (row["value"] for row in found["rows"] if row["part"] == "fair")
    assert share <= 0.5
    under = found["load"]
    assert set(under["full depth"]["shares"]) == {"none"}
    assert {"fast", "faster"} <= set(under["with tiers"]["shares"])
    assert sum(under["with tiers"]["shares"].values()) == pytest.approx(1)
    assert [under[way]["lost"] for way in load.WAYS] == [0, 0]
    assert under["kld"] > 0 and under["promised"] > 1
    assert [row["value"] for row in found["rows"][-2:]] == [1, 1]  # all were answered, and full depth again
    assert png.read_bytes().startswith(b"\x89PNG")
    under["answers"] = {way: [load.Answer(*a) for a in of] for way, of in under["answers"].items()}
    assert len(list(load.table(under))) == 2 + 2 * len(load.QUANTILES) + 4 + len(
        under["with tiers"]["shares"] | {"none": 0}
    )
    assert len(list(tiers.table(found["rows"]))) == 2 + len(found["rows"])
