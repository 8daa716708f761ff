"""`llama-skip doctor`: what it reports, and the warnings about PATH."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from llama_skip import _core
from llama_skip.cli import doctor
from support.shared.command import command


def program(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_json_and_text_say_the_same() -> None:
    code, out, err = command("doctor", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["version"] == _core.version()
    assert Path(report["library"]).is_file()
    assert "CPU" in report["backends"]
    assert "CPU" in [device["name"] for device in report["devices"]]
    first, *rest = command("doctor")[1].splitlines()
    assert first == doctor.summary(report)
    assert f"library: {report['library']}" in rest
    assert sum(line.startswith("device: ") for line in rest) == len(report["devices"])
    loaded = [b for b in report["backend_libraries"] if b["backend"]]
    assert {b["backend"] for b in loaded} == {*report["backends"]}
    assert all(
        Path(b["path"]).is_file() and f"loaded:  {b['backend']} from {b['path']}" in rest for b in loaded
    )


def test_tools_on_path_need_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = program(tmp_path / "ours", "llama-cli")
    monkeypatch.setenv("PATH", str(tool.parent))
    assert doctor.shadowed([tool]) == []


def test_another_program_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool, other = program(tmp_path / "ours", "llama-cli"), program(tmp_path / "other", "llama-cli")
    monkeypatch.setenv("PATH", f"{other.parent}:{tool.parent}")
    (warning,) = doctor.shadowed([tool])
    assert warning == f"llama-cli on PATH is {other}, another program: put {tool.parent} before it"


def test_tools_that_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = [program(tmp_path / "ours", name) for name in ("llama-server", "llama-cli")]
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    (warning,) = doctor.shadowed(tools)
    assert warning == f"{tools[0].parent} is not on PATH, it has llama-cli, llama-server"


def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as err:
        doctor.main(["--jsn"])
    assert err.value.code == 2
    assert "error: unrecognized arguments: --jsn" in capsys.readouterr().err
