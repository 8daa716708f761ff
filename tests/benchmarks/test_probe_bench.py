"""The benchmark that asks whether the probe of a prompt tells what a tier loses behind it."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comparison.stock_build import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import probe
import texts

KINDS = {
    "numbers": "The train number {0} went from {1} to {2}.\n",
    "markup": '<row id="{0}"><from>{1}</from><to>{2}</to></row>\n',
    "code": "def train_{0}(a={1}):\n    return a + {2}\n",
    "words": "Once upon a time a king had {1} horses and {0} dogs.\n",
}
PROMPT, JUDGED = 32, 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for kind, line in KINDS.items():
        (tmp_path / kind).mkdir()
        for j in range(3):
            lines = [line.format(i, i * j + 7, i * i + j) for i in range(20)]
            (tmp_path / kind / f"{j}.txt").write_text("".join(lines))
    return tmp_path


def test_the_rank_correlation() -> None:
    assert probe.ranks([0.3, 0.1, 0.3, 7]).tolist() == [2.5, 1, 2.5, 4]
    rng = np.random.default_rng(0)
    a, b = rng.permutation(20), rng.permutation(20)
    expected = 1 - 6 * float(((a - b) ** 2).sum()) / (20 * (20**2 - 1))  # where no two are equal
    assert probe.spearman(np.exp(a / 5).tolist(), b.tolist()) == pytest.approx(expected)
    assert math.isnan(probe.spearman([1, 1, 1], [1, 2, 3]))


def test_the_entropy() -> None:
    logits = np.log(np.array([[0.25, 0.25, 0.5], [1 / 3] * 3])).astype(np.float32) + 5
    assert probe.entropy(logits) == pytest.approx([1.5 * math.log(2), math.log(3)], abs=1e-6)


def test_what_a_tier_loses_behind_a_prompt_at_full_depth(make: Any, tiny: Path, tokens: list[int]) -> None:
    text = tokens[: PROMPT + JUDGED]
    found = probe.Depths(probe.opened(tiny, 64, 1), text)
    llm = make(tiny, n_ctx=64, flash_attn=True, logits_all=True)

    def logs(spec: str, first: int, last: int) -> np.ndarray:
        llm.reset()
        llm.set_mask("none")
        llm.eval(text[:first])
        llm.set_mask(spec)
        llm.eval(text[first:last])
        rows = llm.scores[first:last].astype(np.float64)
        return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))

    spans = [(PROMPT, len(text)), (PROMPT - 9, PROMPT - 1), (PROMPT, len(text)), (20, PROMPT - 1)]
    for spec, (first, last) in itertools.product(["1", "1-2,3:ffn"], spans):
        full, masked = logs("none", first, last), logs(spec, first, last)
        expected = float((np.exp(full) * (full - masked)).sum(axis=1).mean())
        assert expected > 1e-4
        assert found.kld(spec, first, last) == pytest.approx(expected, rel=1e-3)
    found.llm.close()


def test_what_a_budget_loses() -> None:
    def row(deep: float, shallow: float, after: float) -> dict[str, Any]:
        return {
            "probe": {"faster": {8: shallow}, "fast": {8: deep}},
            "after": {"faster": 2 * after, "fast": after},
            "entropy": {8: 1.0},
        }

    rows = [row(0.1, 0.2, 0.3), row(0.1, 0.9, 0.2), row(0.8, 0.9, 1.0), row(0.2, 0.5, 0.8)]
    args = argparse.Namespace(default=8, tokens=[8], budgets=[0.5])
    (found,) = probe.budgets(rows, args)
    assert found["taken"] == {"faster": 2, "fast": 1, "none": 1}
    assert found["mean"] == pytest.approx((0.6 + 0.2 + 0 + 1.6) / 4)
    assert found["above"] == 0.25 and found["missed"]
    by_tier = {row["tier"]: row for row in probe.correlations(rows, args)}
    assert by_tier["fast"]["probe"] == pytest.approx(probe.spearman([1, 1, 8, 2], [3, 2, 10, 8]))
    assert by_tier["fast"]["missed"]  # an entropy that is the same everywhere tells nothing


def test_texts_of_four_kinds_are_found_here(tmp_path: Path) -> None:
    prose = tmp_path / "prose.txt"
    prose.write_text("".join(f"Line {i} of a book.\n" for i in range(1000)))
    found = texts.take(texts.installed(prose, 4, 512), list, 4, 400)
    assert [kind for kind, *_ in found] == [
        k for k in ("prose", "code", "licences", "markup") for _ in range(4)
    ]
    assert len({(kind, name) for kind, name, _ in found}) == 16
    assert all(len(tokens) == 400 for *_, tokens in found)
    assert [bytes(tokens[:5]) for kind, _, tokens in found if kind == "prose"] == [b"Line "] * 4
    with pytest.raises(ValueError, match="prose: 0 texts have 4000 tokens"):
        texts.take(texts.installed(prose, 4, 512), list, 4, 4000)


def test_the_command(tiny: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = f"--prompt {PROMPT} --judged {JUDGED} --tokens 4 8 --default 8 --long 40 --runs 1 -t 1".split()
    tiers = ["--skip-tier", "fast=1", "faster=1-2"]
    args = [str(tiny), *tiers, "--texts", str(folder), *sizes]
    code = probe.main([*args, "--json"])
    (found,) = json.loads(capsys.readouterr().out).values()
    assert list(found["tiers"].items()) == [("faster", "1-2"), ("fast", "1")]  # the shallowest first
    assert [row["kind"] for row in found["texts"]] == [kind for kind in sorted(KINDS) for _ in range(3)]
    assert [(row["tier"], row["tokens"]) for row in found["correlations"]] == [
        (tier, n) for tier in ("faster", "fast") for n in (4, 8)
    ]
    for row in found["correlations"]:
        of_texts = [text["probe"][row["tier"]][str(row["tokens"])] for text in found["texts"]]
        after = [text["after"][row["tier"]] for text in found["texts"]]
        assert row["probe"] == pytest.approx(probe.spearman(of_texts, after))
    assert all(sum(row["taken"].values()) == 12 for row in found["budgets"])
    assert (found["cost"]["tokens"], found["cost"]["tiers"]) == (40, 2)
    rows = [*found["correlations"], *found["budgets"], found["cost"]]
    assert code == int(any(row["missed"] for row in rows))
    probe.main(args)
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("| tiny.gguf")]) == len(rows)
