"""JSON files: what is read back, what is refused, and what a newer program may add."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from llama_skip import read_evaluation, read_plan, read_score, write_plan, write_score
from llama_skip.eval.file import EvalRow, Evaluation, write_evaluation
from llama_skip.files.identity import Identity, TextInfo
from llama_skip.files.store import replacing
from llama_skip.model.loaded import DeviceMemory
from llama_skip.plan.file import Plan
from llama_skip.plan.found import Found
from llama_skip.score.file import BlockScore, Score, Step

MODEL = Identity("a.gguf", "0" * 16, "1" * 16, "llama", 4, 64, 100, "F32", 1000)
TEXT = TextInfo("file", "a.txt", "2" * 64, 64, 32, 2, 30)
SCORE = Score(
    *(MODEL, TEXT, {"n_ctx": 32}, True, 5.0, 0.1),
    blocks=[BlockScore(0, influence=0.5), BlockScore(1)],
    angular=[[0.1, None]],
    path=[Step(1, 6.0, 0.1, 0.2, 0.01, 0.9, 30, 100)],
)
ROW = EvalRow("none", "a.gguf", "1" * 16, "F32", 4, "", "", 5.0, 0.1, 0.0, 0.0, 0.0, 0.0, 1.0, 30)
EVALUATION = Evaluation(
    *(MODEL, TEXT, {"n_ctx": 32}),
    rows=[ROW, EvalRow(**{**vars(ROW), "memory": {"CPU": DeviceMemory(1, 2, 3)}})],
)
PLAN = Plan(MODEL, "1-2", "1:0.5", found=Found("given"), alternatives=[{"name": "a"}])
KINDS: dict[str, tuple[Any, Any, Any]] = {
    "score": (write_score, read_score, SCORE),
    "evaluation": (write_evaluation, read_evaluation, EVALUATION),
    "plan": (write_plan, read_plan, PLAN),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(kind: str, tmp_path: Path) -> None:
    write, read, value = KINDS[kind]
    write(tmp_path / "a.json", value)
    assert read(tmp_path / "a.json") == value
    content = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({**content, "added_later": 1}))
    assert read(tmp_path / "a.json") == value


@pytest.mark.parametrize(
    ("kind", "keys", "value"),
    [
        ("score", ("complete",), "yes"),
        ("score", ("full", "perplexity"), "5"),
        ("score", ("full",), 5),
        ("score", ("path", 0, "kld"), None),
        ("score", ("blocks", 0, "block"), 0.5),
        ("score", ("text", "n_tokens"), "64"),
        ("score", ("model", "n_embd"), "64"),
        ("evaluation", ("rows",), {}),
        ("evaluation", ("rows", 0, "perplexity"), "5"),
        ("evaluation", ("rows", 1, "memory", "CPU"), {"weights": 1}),
        ("evaluation", ("rows", 1, "memory", "CPU", "kv"), "2"),
        ("plan", ("skip_layers",), [1]),
        ("plan", ("found",), []),
        ("plan", ("bypass",), [{"gap": "1", "n_blocks": 1, "tier": "affine"}]),
    ],
    ids=str,
)
def test_another_type_is_refused(
    kind: str, keys: tuple[str | int, ...], value: object, tmp_path: Path
) -> None:
    write, read, whole = KINDS[kind]
    write(tmp_path / "a.json", whole)
    content = json.loads((tmp_path / "a.json").read_text())
    at = content
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"a\.json: not a whole {kind} file: "):
        read(tmp_path / "a.json")


def test_permissions_are_those_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for path, mode in ((tmp_path / "new", 0o640), (tmp_path / "old", 0o604)):
            if path.name == "old":
                path.touch()
                path.chmod(mode)
            with replacing(path) as file:
                file.write(b"x")
            assert path.stat().st_mode & 0o777 == mode
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
