"""`llama-skip demo`: its table, JSON, and what it refuses."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from llama_skip import identify, read_plan
from llama_skip.cli import demo
from llama_skip.cli.command import UsageError
from llama_skip.files.smollm2 import HEALED_PLAN
from support.shared.command import command

ONE_ROUND = "from llama_skip.cli import demo; demo.MOST_ROUNDS = 1"
SMALL = ["--ctx-size", "128", "--windows", "2", "-t", "1"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The lighthouse at the end of the harbour was built long ago. " * 40)
    return path


def test_the_default_model(smollm2: Path, text: Path) -> None:
    code, out, err = command("demo", *SMALL, "-f", text, before=ONE_ROUND)
    assert code == 0, err
    lines = out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[:2] == ["left", "out"])
    names = [line.strip() for line in lines[head + 1 : head + 6]]
    wanted = ["none", *demo.SMOLLM2_SETS, f"{read_plan(HEALED_PLAN).skip_layers}, healed"]
    assert all(name.startswith(row + " ") for name, row in zip(names, wanted, strict=True)), out
    assert [name.removeprefix(row).split()[:3] for name, row in zip(names, wanted, strict=True)] == [
        [str(30 - n), "of", "30"] for n in (0, 1, 2, 3, 3)
    ]
    assert "the median of 1 rounds" in out
    assert shlex.split(lines[-2])[:2] == ["llama-skip", "score"]
    assert shlex.split(lines[-1])[:2] == ["llama-cli", "-m"]
    assert Path(shlex.split(lines[-1])[2]) == smollm2


def test_the_healed_plan_is_for_this_model(smollm2: Path, tiny: Path) -> None:
    plan = read_plan(HEALED_PLAN)
    assert plan.model.file_id == identify(smollm2).file_id
    assert plan.skip_layers in demo.SMOLLM2_SETS
    assert HEALED_PLAN.stat().st_size < 200 * 1024
    assert demo.healed_plan(str(smollm2)) == [f"@{HEALED_PLAN}"]
    assert demo.healed_plan(str(tiny)) == []


def test_json(tiny: Path, text: Path) -> None:
    args = ["--model", tiny, "--json", "--skip-layers", "1", "--skip-layers", "1-2", *SMALL]
    code, out, err = command("demo", *args, "-f", text)
    assert code == 0, err
    found = json.loads(out)
    assert found["model"] == str(tiny)
    rows = found["rows"]
    assert [(row["skip_layers"], row["n_kept"]) for row in rows] == [
        ("none", 4),
        ("1", 3),
        ("1-2", 2),
    ]
    assert all(row["prompt_speed"] > 0 and row["generation_speed"] > 0 for row in rows)
    assert rows[0]["weights"] > rows[1]["weights"] > rows[2]["weights"]
    assert rows[0]["kv"] > rows[1]["kv"] > rows[2]["kv"]


def test_another_model_without_sets(tiny: Path, text: Path) -> None:
    code, out, err = command("demo", "--model", tiny, *SMALL, "-f", text, before=ONE_ROUND)
    assert code == 0, err
    assert "healed" not in out
    assert f"llama-cli -m {tiny} --skip-layers 1" in out


@pytest.mark.parametrize(
    ("args", "code", "reason"),
    [
        (["--model", "missing.gguf"], 1, "missing.gguf"),
        (["--ctx-size", "64"], 2, "--ctx-size has to be at least 128"),
        (["--windows", "0"], 2, "--windows at least 1"),
        (["--skip-layers", "40"], 2, "--skip-layers: block 40 is out of range"),
    ],
)
def test_bad_arguments(tiny: Path, args: list[str], code: int, reason: str) -> None:
    found, _, err = command("demo", *([] if "--model" in args else ["--model", tiny]), *args)
    assert found == code
    assert err.splitlines()[-1].startswith("error: ")
    assert reason in err
    assert "Traceback" not in err


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("not a model")
    code, _, err = command("demo", "--model", tmp_path / "text.gguf")
    assert code == 1 and "error: " in err


def test_sets_from_the_middle() -> None:
    assert demo.middle_sets(32) == ["15-16", "14-17"]
    assert demo.middle_sets(4) == ["1", "1-2"]
    with pytest.raises(UsageError, match="3 blocks"):
        demo.middle_sets(3)
