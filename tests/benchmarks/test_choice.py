"""The benchmark that compares our choice of blocks with published ways."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_skip.score.file import read_score

from comparison.stock_build import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import choice
import reference
from support.shared.plain import N_CTX, N_TOKENS, plain

__all__ = ["plain"]  # fixtures

WAYS = ["greedy", "SLEB", "one-shot", "influence", "angular", "angular-1"]


@pytest.fixture(scope="module")
def run(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder and the rows of a run on the model."""
    folder = tmp_path_factory.mktemp("run")
    text = folder / "text.txt"
    text.write_text("".join(f"The train number {i} went from {i + 7} to {i * i}.\n" for i in range(60)))
    args = [str(plain), "-f", str(text), "-d", str(folder), "--tokens", str(N_TOKENS), "-c", str(N_CTX)]
    with (folder / "out.json").open("w") as out:
        stdout, sys.stdout = sys.stdout, out
        try:
            code = choice.main([*args, "-t", "1", "--json"])
        finally:
            sys.stdout = stdout
    rows: list[dict[str, Any]] = json.loads((folder / "out.json").read_text())["plain.gguf"]
    assert code == int(any(row.get("missed") for row in rows))
    return folder, rows


def test_every_way_at_every_share(run: tuple[Path, list[dict[str, Any]]]) -> None:
    _, rows = run
    assert [(row["share"], row["way"]) for row in rows[1:]] == [(s, w) for s in (0.1, 0.2, 0.3) for w in WAYS]
    for row in rows[1:]:
        ranges = [item.partition("-") for item in row["blocks"].split(",")]
        n_blocks = sum(int(last or first) - int(first) + 1 for first, _, last in ranges)
        assert n_blocks == (2 if row["share"] == 0.3 else 1)  # rounded down, at least one


def test_perplexities_are_those_of_the_reference(plain: Path, run: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, rows = run
    found = json.loads((folder / "plain.sleb.json").read_text())
    assert rows[0]["calibration"] == pytest.approx(found["full"]["perplexity"], rel=0.01)
    by_way = {(row["share"], row["way"]): row for row in rows[1:]}
    for share, step in zip((0.1, 0.3), found["path"], strict=True):
        # the cache of the library is F16
        assert by_way[share, "SLEB"]["calibration"] == pytest.approx(step["perplexity"], rel=0.01)
    for row in rows[1:]:
        ours = by_way[row["share"], "greedy"]
        for text in ("calibration", "judging"):
            assert row["ratio"][text] == ours[text] / row[text]


def test_the_judging_text_is_another_one(
    run: tuple[Path, list[dict[str, Any]]], plain: Path, make: Any
) -> None:
    folder, rows = run
    text = (folder / "text.txt").read_text()
    second = text[text.index("\n", len(text) // 2) + 1 :]
    tokens = np.array(make(plain, vocab_only=True).tokenize(second.encode())[:N_TOKENS]).reshape(-1, N_CTX)
    model = reference.load(plain)
    first = N_CTX // 2
    scored = [
        model.surprisal(stream[first:-1], window[first + 1 :])
        for stream, window in zip(model.run(tokens), tokens, strict=True)
    ]
    assert rows[0]["judging"] == pytest.approx(float(np.exp(np.concatenate(scored).mean())), rel=0.01)


def test_what_each_way_chooses(run: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, _ = run
    score = read_score(folder / "plain.score.json")
    path = [replace(score.path[0], block=block) for block in (4, 2)]
    found = {
        "path": [{"block": 5}, {"block": 1}],
        "one_shot": [9.0, 3, 5, 7, 2, 6, 8],
        "influence": [0.9, 0.5, 0.4, 0.1, 0.3, 0.6, 0.2],
        "angular": [[0.5, 0.6, 0.7], [0.3, 0.1, 0.7], [0.2, 0.4]],
        "angular_last": [[0.5, 0.05, 0.7], [0.3, 0.1, 0.7], [0.2, 0.4]],
    }
    assert choice.choices(replace(score, path=path), found, 2) == {
        "greedy": [4, 2],
        "SLEB": [5, 1],
        "one-shot": [4, 1],
        "influence": [3, 6],
        "angular": [1, 2],
        "angular-1": [0, 1],
    }


@pytest.mark.parametrize(
    ("way", "text", "share", "most", "is_strict"),
    [
        ("SLEB", "calibration", 0.1, 1.01, False),
        ("SLEB", "judging", 0.3, 1.03, False),
        ("influence", "judging", 0.1, 1.03, False),
        ("angular", "judging", 0.2, 1.0, True),
        ("one-shot", "judging", 0.3, 1.0, True),
    ],
)
def test_bounds(way: str, text: str, share: float, most: float, is_strict: bool) -> None:
    assert not choice.is_missed(most - 1e-9, way, text, share)
    assert choice.is_missed(most, way, text, share) == is_strict
    assert choice.is_missed(most + 1e-9, way, text, share)


def test_only_the_search_is_a_bound_on_the_calibration_text() -> None:
    assert not choice.is_missed(2.0, "influence", "calibration", 0.2)
