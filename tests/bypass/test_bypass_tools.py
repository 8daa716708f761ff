"""The tools with a plan file that has tensors: as a flag, a variable, an override, and of a draft model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.plan_files import Bypass, random_bypass, write_gguf
from support.shared.bypasses import halves
from support.shared.tools import complete, saved_logits, server_facts

from comparison.builds import Build
from comparison.oracle import TEXT, of_blocks, tensors

N_EMBD, RANK = 64, 32


def plan_file(path: Path, model: Path, layers: str, *bypasses: Bypass) -> str:
    return f"@{write_gguf(path, model, layers, list(bypasses), arch='qwen3')}"


@pytest.fixture
def linear(tiny: Path, tmp_path: Path) -> tuple[str, str]:
    """A plan, and what the tools say of its bypass."""
    bypass = random_bypass(1, N_EMBD, RANK, n_blocks=2, norm_eps=1e-6)
    text = f"linear (rank {RANK}) at 1, {bypass.n_bytes / 2**20:.2f} MiB"
    return plan_file(tmp_path / "linear.gguf", tiny, "1-2", bypass), text


def test_every_way_to_give_a_plan_with_tensors(ours: Build, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 3)
    run = (ours, tiny, tmp_path / "text.txt")
    expected = saved_logits(*run, tmp_path / "a", "--skip-layers", "1-2", "--skip-scale", "0.5")
    assert expected != saved_logits(*run, tmp_path / "a", "--skip-layers", "1-2")
    for i, bypass in enumerate(halves(1, N_EMBD, 2)):
        plan = plan_file(tmp_path / f"{i}.gguf", tiny, "1-2", bypass)
        assert saved_logits(*run, tmp_path / "b", "--skip-layers", plan) == expected
        env = {"LLAMA_ARG_SKIP_LAYERS": plan}
        assert saved_logits(*run, tmp_path / "b", env=env) == expected
        assert saved_logits(*run, tmp_path / "b", "--override-kv", f"skip.plan=str:{plan}") == expected


@pytest.mark.parametrize("fit", ["on", "off"])
def test_one_line_says_what_stands_in_the_gaps(
    ours: Build, tiny: Path, linear: tuple[str, str], fit: str
) -> None:
    plan, said = linear
    done = complete(ours, tiny, "--skip-layers", plan, "-fit", fit)
    assert done.returncode == 0, done.stderr[-3000:]
    mib = sum(t.size for t in of_blocks(tiny, [1, 2])) / 2**20
    size = f"{mib:.2f} MiB not loaded, 0.25 KiB less KV a token (F16)"
    line = f"skip: blocks 1-2 left out, 2 of 4 kept, {size}; bypass {said}; chosen by {plan}"
    assert done.stderr.count(line) == 1
    assert ours.run("llama-fit-params", "-m", tiny, "-c", 128, "--skip-layers", plan).stderr.count(line) == 1


def test_a_wrong_plan_is_refused_before_loading(ours: Build, tiny: Path, tmp_path: Path) -> None:
    plan = plan_file(tmp_path / "plan.gguf", tiny, "1-2", random_bypass(1, N_EMBD))
    for tool in (
        complete(ours, tiny, "--skip-layers", plan),
        ours.run("llama-bench", "-m", tiny, "--skip-layers", plan),
    ):
        assert tool.returncode != 0
        assert tool.stderr.count("the bypass of the gap at block 1 is for 1 blocks, that is no gap") == 1
        assert "load_tensors" not in tool.stderr


def test_a_scale_beside_it_is_refused(ours: Build, tiny: Path, linear: tuple[str, str]) -> None:
    done = complete(ours, tiny, "--skip-layers", linear[0], "--skip-scale", "0.5")
    assert done.returncode != 0
    assert f"--skip-scale: the plan '{linear[0]}' brings bypasses of its own" in done.stderr


def test_bench_counts_the_tensors(ours: Build, tiny: Path, linear: tuple[str, str]) -> None:
    args = ("-m", tiny, "-p", 2, "-n", 2, "-r", 1, "-t", 1, "--skip-layers", linear[0], "-o", "json")
    rows = json.loads(ours.run("llama-bench", *args).stdout)
    bypass = random_bypass(1, N_EMBD, RANK, n_blocks=2)
    kept = sum(t.size for t in tensors(tiny)) - sum(t.size for t in of_blocks(tiny, [1, 2]))
    assert [row["model_size"] for row in rows] == [kept + bypass.n_bytes] * 2
    assert {row["skip_layers"] for row in rows} == {linear[0]}


def test_the_server_and_its_draft_model(ours: Build, tiny: Path, linear: tuple[str, str]) -> None:
    plan, said = linear
    draft = ("-md", str(tiny), "-fit", "off", "--skip-layers-draft", plan)
    props, log = server_facts(ours, tiny, "--skip-layers", plan, *draft)
    assert props["skip"]["layers"] == "1-2"
    assert props["skip"]["bypass"] == said
    assert log.count(f"; bypass {said}; chosen by {plan}") == 2
    props, log = server_facts(ours, tiny, *draft)
    assert props["skip"]["bypass"] == ""
    assert log.count(f"; bypass {said}; chosen by {plan}") == 1
