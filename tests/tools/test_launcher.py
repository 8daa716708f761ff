"""The console scripts that become the tools in llama_skip/bin."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from llama_skip import _tools


def launch(function: str, *args: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; from llama_skip import _tools; sys.exit(_tools.{function}())"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", code, *args], env=env, capture_output=True, text=True)


def test_every_entry_point_has_its_tool() -> None:
    points = [p for p in distribution("llama-skip").entry_points if p.value.startswith("llama_skip._tools:")]
    assert len(points) == 11
    for point in points:
        assert point.value == f"llama_skip._tools:{point.name.replace('-', '_')}"
        assert point.load().args == (point.name,)
        tool = _tools.tool_path(point.name)
        assert tool is not None or point.name == "ggml-rpc-server"
        assert tool is None or os.access(tool, os.X_OK)


def test_arguments_output_and_exit_code_are_the_tools() -> None:
    done = launch("llama_completion", "--version")
    assert done.returncode == 0
    assert "version" in done.stdout + done.stderr
    done = launch("llama_completion", "--no-such-flag")
    direct = subprocess.run(
        [str(_tools.tool_path("llama-completion")), "--no-such-flag"], capture_output=True, text=True
    )
    assert done.returncode == direct.returncode != 0
    assert done.stderr == direct.stderr


def test_a_tool_that_was_not_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert _tools.tool_path("llama-none") is None
    assert _tools.run("llama-none") == 1
    assert "this installation of llama-skip was built without llama-none" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="there a process cannot be replaced")
def test_the_process_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "llama-cli"
    tool.write_text('#!/bin/sh\necho "$$ $*"\n')
    tool.chmod(0o755)
    code = f"import llama_skip; llama_skip.__path__.insert(0, {str(tmp_path)!r})\n"
    code += "from llama_skip import _tools; _tools.llama_cli()"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, "a b", "-c"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        out, _ = process.communicate()
    assert out == f"{process.pid} a b -c\n"
