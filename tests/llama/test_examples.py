"""The scripts of examples/, each run as a user would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from llama_skip import read_plan, skipset
from support.shared.prose import PROSE

from comparison.server import free_port
from comparison.stock_build import ROOT

EXAMPLES = ROOT / "examples"


def run(name: str, *args: object, text: str = "") -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, args)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_chat() -> None:
    out = run("chat.py", "-n", 6, text="Hello\nAnd again\n")
    assert out.count("> ") == 3
    assert len(out.split("> ")[1].strip()) > 2


@pytest.mark.parametrize("layers", [[], ["--skip-layers", "13-14"]], ids=str)
def test_stream(smollm2: Path, layers: list[str]) -> None:
    assert len(run("stream.py", smollm2, "-n", 6, *layers).strip()) > 2


def test_json_schema() -> None:
    assert set(json.loads(run("json_schema.py"))) == {"town", "country"}


def test_embeddings() -> None:
    rows = [line.split("  ") for line in run("embeddings.py").splitlines()]
    similarities = [float(row[0]) for row in rows]
    assert len(rows) == 3
    assert similarities == sorted(similarities, reverse=True)
    assert all(-1 <= s <= 1 for s in similarities)


def test_depths() -> None:
    lines = run("depths.py", "-n", 4).splitlines()
    assert [line.split(" blocks: ")[0] for line in lines] == ["30", "29", "28", "27"]
    assert len(set(lines)) == 4


def test_score_plan_and_heal(tiny: Path, tmp_path: Path) -> None:
    text, other, score = tmp_path / "text.txt", tmp_path / "other.txt", tmp_path / "score.json"
    plan, healed = tmp_path / "plan.json", tmp_path / "healed.gguf"
    text.write_text(3 * PROSE)
    other.write_text(2 * PROSE[::-1])
    sizes = ["-f", text, "-c", 32, "--tokens", 256]
    lines = run("score.py", tiny, *sizes, "--blocks", 2, "-o", score).splitlines()
    assert len(lines) == 3
    blocks = sorted(int(line.split()[1]) for line in lines[1:])

    # so wide that both may go
    said = run("plan.py", score, "--max-ppl-ratio", 1e6, "-o", plan)
    assert said.endswith(f", or --skip-layers @{plan}\n")
    assert read_plan(plan).skip_layers == skipset.ranges_text(blocks)

    rows = run("heal.py", tiny, "--plan", plan, *sizes, "--judge", other, "-o", healed).splitlines()
    assert [row.split(": ")[0] for row in rows] == ["the full model", str(plan), str(healed)]
    assert "KL divergence 0.000" in rows[0]
    assert read_plan(healed).skip_layers == skipset.ranges_text(blocks)


def test_serve(smollm2: Path) -> None:
    lines = run("serve.py", smollm2, "--skip-layers", "13,26", "-n", 6, "--port", free_port()).splitlines()
    assert lines[0] == "left out: 13,26"
    assert len(lines[1]) > 2


def test_every_example_is_run_here() -> None:
    tested = set(re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text()))
    assert tested == {path.name for path in EXAMPLES.glob("*.py")} - {"common.py"}
