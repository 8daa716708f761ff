"""ggml's AMX kernels, which crash as GCC compiles them, are in no build, whatever processor it is made on."""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest

from comparison.builds import Build

FLAG = "-mno-amx-int8"


def test_no_file_is_compiled_for_amx(stock: Build) -> None:
    commands = stock.lib.parent / "compile_commands.json"
    if not commands.is_file():
        pytest.skip("LLAMA_SKIP_STOCK names a folder without compile commands")
    words = [shlex.split(entry["command"]) for entry in json.loads(commands.read_text())]
    kernels = [command for command in words if any("/ggml-cpu/amx/" in word for word in command)]
    assert kernels
    for command in kernels:
        compiler = command[: command.index(next(word for word in command if word.startswith("-")))]
        known = subprocess.run([*compiler, FLAG, "-E", "-"], input="", text=True, capture_output=True)
        last = [word for word in command if word.endswith("amx-int8")][-1:]
        assert last == [FLAG] or known.returncode != 0
