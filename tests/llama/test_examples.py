"""The scripts of examples/, each run as a user would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.stock_build import ROOT

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


def test_every_example_is_run_here() -> None:
    tested = set(re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text()))
    assert tested == {path.name for path in EXAMPLES.glob("*.py")} - {"common.py"}
