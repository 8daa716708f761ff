"""Scores and plans with halves of blocks, in metadata and files: what auto: and @NAME choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from llama_skip import annotate_model
from llama_skip.files.identity import identify
from llama_skip.plan.choose import plan_blocks
from llama_skip.plan.file import Plan, write_plan
from llama_skip.score.file import Score
from llama_skip.skipset import Unit, resolve
from support.metadata import Value, write_sidecar
from support.shared.halves import score_with_halves

from comparison.builds import Build
from comparison.oracle import logits

TOKENS = [1, 338, 2501, 99, 7]
PATH: list[Unit] = [(1, "attn"), (2, "ffn"), (3, "attn"), 2, 0]
SHARES = [0.0625, 0.25, 0.3125, 0.375, 0.625]  # attention is a quarter of each of four blocks


@pytest.fixture
def bare(tiny: Path, tmp_path: Path) -> Path:
    """The tiny model, in a folder of its own."""
    path = tmp_path / "bare.gguf"
    path.symlink_to(tiny)
    return path


@pytest.fixture
def score(bare: Path) -> Score:
    return score_with_halves(identify(bare), PATH, [0.125, 0.25, 0.5, 0.75, 1.0])


CHOSEN = {
    "auto:1%": "1:attn",  # at least one
    "auto:6.25%": "1:attn",
    "auto:24.999%": "1:attn",
    "auto:25%": "1:attn,2:ffn",
    "auto:1": "1:attn,2:ffn",
    "auto:31.24%": "1:attn,2:ffn",
    "auto:31.25%": "1:attn,3:attn,2:ffn",
    "auto:37.5%": "2,1:attn,3:attn",  # the block in place of its half
    "auto:2": "2,1:attn,3:attn",
    "auto:62.5%": "0,2,1:attn,3:attn",
    "auto:74%": "0,2,1:attn,3:attn",  # the path reaches two blocks, a third one is not asked for in whole
}


@pytest.mark.parametrize(("text", "layers"), CHOSEN.items())
def test_a_share_is_the_longest_beginning(bare: Path, score: Score, text: str, layers: str) -> None:
    annotate_model(bare, score=score)
    assert resolve(bare, text, "") == resolve(bare, layers, "")
    number = text.removeprefix("auto:")
    target = {"fraction": float(number[:-1]) / 100} if number[-1] == "%" else {"blocks": int(number)}
    assert resolve(bare, plan_blocks(score, **target).skip_layers, "") == resolve(bare, layers, "")


def test_logits_and_the_log_are_those_of_the_set(
    ours: Build, make: Callable[..., Any], bare: Path, score: Score, tmp_path: Path
) -> None:
    layers = "2,1:attn,3:attn"
    plans = {"fast": Plan(identify(bare), layers), "scaled": Plan(identify(bare), layers, "2:0.5")}
    annotate_model(bare, score=score, plans=plans)
    write_plan(tmp_path / "plan.json", plans["fast"])
    expected = ours.worker.call(logits, bare, TOKENS, {"skip.layers": layers})
    full = ours.worker.call(logits, bare, TOKENS)
    assert not np.array_equal(expected, full)
    for text in ("auto:2", "@fast", f"@{tmp_path / 'plan.json'}"):
        assert np.array_equal(ours.worker.call(logits, bare, TOKENS, {"skip.plan": text}), expected), text
    by_hand = {"skip.layers": layers, "skip.scale": "2:0.5"}
    scaled = ours.worker.call(logits, bare, TOKENS, by_hand)
    assert np.array_equal(ours.worker.call(logits, bare, TOKENS, {"skip.plan": "@scaled"}), scaled)
    lines: list[str] = []
    make(bare, skip_layers="auto:2", log=lambda level, text: lines.append(text))
    assert f"blocks {layers} left out" in "".join(lines)
    assert f"chosen by auto:2, from {bare.with_suffix('.skip.gguf')}, KL divergence 0.75" in "".join(lines)


def test_a_mask_can_be_such_a_plan(make: Callable[..., Any], bare: Path, score: Score) -> None:
    annotate_model(bare, score=score)
    llm = make(bare, skip_layers="1:attn")
    llm.set_mask("auto:1")
    assert llm.mask == ((1, "attn"), (2, "ffn"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 3}, "has version 3, this build knows 1-2"),
        ({"path.half": ["attn", "mlp", "attn", "", ""]}, "names 'mlp', expected attn, ffn or nothing"),
        ({"path.half": ["attn"]}, "has 5 steps, but 1 halves and 5 shares of them"),
        ({"path.half": [1] * 5}, "skip.score.path.half: expected an array of strings"),
        ({"path.share": SHARES[:3]}, "has 5 steps, but 5 halves and 3 shares of them"),
        ({"path": [1, 2, 1, 2, 0]}, "names block 1 twice"),  # the same half
        ({"path": [1, 2, 4, 2, 0]}, "names block 4, which is not there"),
        ({"path.half": ["", "", "attn", "", ""]}, "names block 2 twice"),
        ({"path": [2, 2, 3, 1, 0], "path.half": ["", "ffn", "attn", "", ""]}, "names block 2 twice"),
        (
            {"path.share": [0.1, 0.2, 0.3, 0.4, 0.49]},
            "leaves out 49%, 50% are needed; score the model",
        ),
        ({"path.share": [float("nan")] * 5}, "leaves out nan%, 50% are needed"),
    ],
    ids=str,
)
def test_a_path_that_does_not_fit_is_refused(bare: Path, changes: dict[str, Value], reason: str) -> None:
    about = identify(bare)
    values: dict[str, Value] = {
        "version": 2,
        "model_id": about.model_id,
        "file_id": about.file_id,
        "path": [1, 2, 3, 2, 0],
        "path.half": ["attn", "ffn", "attn", "", ""],
        "path.share": SHARES,
    }
    sidecar = bare.with_suffix(".skip.gguf")
    write_sidecar(sidecar, "qwen3", {f"skip.score.{k}": v for k, v in values.items()})
    assert resolve(bare, "auto:2", "") == resolve(bare, "2,1:attn,3:attn", "")
    write_sidecar(sidecar, "qwen3", {f"skip.score.{k}": v for k, v in {**values, **changes}.items()})
    with pytest.raises(ValueError) as error:
        resolve(bare, "auto:2", "")
    assert str(error.value).startswith("skip_layers: 'auto:2': ") and reason in str(error.value)


def test_a_score_without_halves_stays_of_the_first_version(bare: Path, score: Score) -> None:
    def written(of: Score) -> dict[str, Any]:
        found = annotate_model(bare, score=of).path
        return {f.name: f.contents() for f in GGUFReader(found).fields.values()}

    of_halves = written(score)
    assert of_halves["skip.score.version"] == 2
    assert of_halves["skip.score.path"] == [1, 2, 3, 2, 0]
    assert of_halves["skip.score.path.half"] == ["attn", "ffn", "attn", "", ""]
    assert of_halves["skip.score.path.share"] == SHARES
    assert of_halves["skip.score.per"] == "weights"
    blocks = replace(score, halves=[], settings={}, path=[replace(step, half="") for step in score.path[:2]])
    of_blocks = written(blocks)
    assert of_blocks["skip.score.version"] == 1
    assert not {"skip.score.path.half", "skip.score.path.share", "skip.score.per"} & of_blocks.keys()
    assert resolve(bare, "auto:2", "")[0] == [1, 2]
