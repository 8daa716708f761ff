"""Disk blocks in Llama."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_skip.files.identity import identify
from llama_skip.plan.file import Plan, write_plan

from comparison.oracle import expand, of_blocks

DISK = "1-29+2"


def test_disk_blocks_in_llama(make: Callable[..., Any], smollm2: Path) -> None:
    every = make(disk_layers=range(30))
    llm = make(disk_layers="0-29", disk_scale={3: 0.5, 7: 2.0}, disk_strict=True, disk_idle=30)
    assert every.disk_layers == tuple(range(30)) and every.disk_scale == {}
    assert llm.disk_layers == tuple(range(30)) and llm.disk_scale == {3: 0.5, 7: 2.0}
    tokens = every.tokenize(b"The old man and the sea")
    whole = every.logits(tokens)
    assert not np.array_equal(llm.logits(tokens), whole)
    same = make(kv_overrides={"skip.disk": "0-29", "skip.disk_scale": "3:0.5,7:2"})
    assert np.array_equal(same.logits(tokens), llm.logits(tokens))
    left_out = make(disk_layers="0-29", disk_scale={13: 0, 14: 0})
    assert left_out.skip_layers == (13, 14) and 13 not in left_out.disk_layers


def test_standby_and_memory(make: Callable[..., Any], smollm2: Path) -> None:
    llm = make(disk_layers=DISK)
    mib = sum(t.size for t in of_blocks(smollm2, expand(DISK))) / 2**20
    llm.eval(llm.tokenize(b"The old man"))
    memory = llm.disk_memory()
    assert memory.mapped == pytest.approx(mib, rel=0.001)
    assert memory.resident == pytest.approx(mib, rel=0.01)
    llm.standby()
    assert llm.disk_memory().resident == 0
    llm.eval(llm.tokenize(b" and the sea"))
    assert llm.disk_memory().resident == pytest.approx(mib, rel=0.01)
    assert make().disk_memory() == (0, 0)
    dry = make(disk_layers=DISK, dry_run=True)
    dry.standby()
    assert dry.disk_memory() == (0, 0)
    assert sum(dry.memory()["CPU"]) == pytest.approx(sum(llm.memory()["CPU"]), rel=0.01)


def test_hidden_states_are_those_of_the_scaled_stream(make: Callable[..., Any]) -> None:
    """Block 7 hands on x + S*(f(x) - x), with f(x) of a model in which nothing before it differs."""
    every = make(disk_layers="0-29", hidden_states=True)
    scaled = make(disk_layers="0-29", disk_scale={7: 0.25}, hidden_states=True)
    tokens = every.tokenize(b"The old man and the sea")
    whole, found = every.hidden_states(tokens), scaled.hidden_states(tokens)
    x, f = whole.inputs[7], whole.outputs[7]
    assert np.array_equal(found.inputs[7], x)
    assert np.array_equal(found.outputs[7], x + np.float32(0.25) * (f - x))


@pytest.mark.parametrize("disk", [{"disk_layers": "2"}, {"disk_scale": "2:0.5"}], ids=str)
def test_a_mask_cannot_be_a_plan_with_disk_blocks(
    make: Callable[..., Any], smollm2: Path, tmp_path: Path, disk: dict[str, str]
) -> None:
    llm, path = make(), tmp_path / "plan.json"
    write_plan(path, Plan(identify(smollm2), "13", **disk))
    with pytest.raises(ValueError, match="the plan keeps blocks on disk"):
        llm.set_mask(f"@{path}")
    assert llm.mask == ()


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"disk_layers": "30"}, ValueError, "disk_layers: block 30"),
        ({"disk_layers": ""}, ValueError, "disk_layers: empty"),
        ({"disk_layers": [True]}, TypeError, "disk_layers: a block is an int"),
        (
            {"disk_layers": "3", "disk_scale": float("nan")},
            ValueError,
            "disk_scale: the scale 'nan' is not finite",
        ),
        ({"disk_layers": "3", "disk_scale": {4: 1.0}}, ValueError, "disk_scale: block 4 is not on disk"),
        ({"disk_layers": "3", "disk_idle": -1}, ValueError, "disk_idle: -1"),
        ({"disk_layers": "3-5", "skip_layers": "4"}, ValueError, "disk_layers: blocks 4 are left out"),
        ({"disk_layers": "3", "kv_overrides": {"skip.disk": "4"}}, ValueError, "disk_layers: also given as"),
    ],
)
def test_refused(
    make: Callable[..., Any], kwargs: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words.replace("(", r"\(")):
        make(**kwargs)
