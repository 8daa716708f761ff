"""What others build on keeps its name: public names, verbs, flags, entry points, as in a checked-in list."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points, version
from pathlib import Path

import llama_skip
import pytest
from llama_skip import _core
from llama_skip.cli import VERBS, main

LIST = Path(__file__).with_name("interface.txt")  # a new name is a line here; none may go
FLAG = re.compile(r"^ {2,}(-[-\w]+(?:[^\n]*?--?[\w-]+)*)", re.MULTILINE)


def flags_of(text: str) -> list[str]:
    """Return the flags that an argparse help lists."""
    return sorted(
        {flag for line in FLAG.findall(text) for flag in re.findall(r"(?<![\w-])--?[a-z][\w-]*", line)}
    )


def interface(capsys: pytest.CaptureFixture[str]) -> list[str]:
    found = [f"name {name}" for name in llama_skip.__all__]
    found += [f"module llama_skip.{name}" for name in ("compat", "errors")]
    for verb in VERBS:
        if verb == "harness":  # lm-eval's own
            found.append("verb harness")
            continue
        with pytest.raises(SystemExit) as end:
            main([verb, "--help"])
        assert end.value.code == 0
        found.append(f"verb {verb} {' '.join(flags_of(capsys.readouterr().out))}")
    return found


def test_nothing_that_others_use_has_gone(capsys: pytest.CaptureFixture[str]) -> None:
    assert interface(capsys) == LIST.read_text().splitlines()
    for name in ("compat", "errors"):
        done = subprocess.run([sys.executable, "-c", f"import llama_skip.{name}"], capture_output=True)
        assert done.returncode == 0, done.stderr


def test_the_reference_has_every_public_name() -> None:
    page = Path(__file__).parents[2] / "docs" / "site" / "reference.md"
    there = re.findall(r"^::: llama_skip\.(\w+)$", page.read_text(), re.MULTILINE)
    assert sorted(there) == sorted({*llama_skip.__all__} - {"__version__"})


def test_console_scripts() -> None:
    scripts = {
        e.name: e.value for e in entry_points(group="console_scripts") if e.value.startswith("llama_skip")
    }
    if not scripts:
        pytest.skip("llama-skip is not installed")
    for value in scripts.values():
        module, _, name = value.partition(":")
        assert callable(getattr(import_module(module), name))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"llama-skip {version('llama-skip')} (llama.cpp {_core.upstream()})\n"
    assert llama_skip.__version__ == version("llama-skip")
