"""The two builds that are compared, for the tests and the benchmarks."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from comparison.libllama import Worker
from comparison.stock_build import ROOT, build_stock, llama_cpp_package


@dataclass(frozen=True)
class Build:
    lib: Path
    bin: Path

    @cached_property
    def worker(self) -> Worker:
        """The lasting process in which this build's library is called."""
        return Worker(self.lib)

    def tool(self, name: str) -> Path:
        path = self.bin / name
        assert path.is_file(), f"{path} was not built"
        return path

    def run(self, name: str, *args: object, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        """Run a tool to its end, with no input and none of the caller's LLAMA_ARG_* variables."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_ARG_")} | kwargs.pop("env", {})
        command = [str(self.tool(name)), *map(str, args)]
        kwargs = {"stdin": subprocess.DEVNULL, "timeout": 300, "errors": "replace", **kwargs}
        return subprocess.run(command, capture_output=True, text=True, env=env, **kwargs)

    def complete(self, model: Path, *args: object, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        """Run llama-completion on a short prompt, greedily, to its end."""
        words = ["-no-cnv", "--no-warmup", "-n", "8", "--temp", "0", "-c", "512", "-t", "1", "-p"]
        done = self.run("llama-completion", "-m", model, *words, "The old man", *args, **kwargs)
        assert done.returncode == 0, done.stderr[-3000:]
        return done


def stock() -> Build:
    """The unpatched library and tools, built on first use; LLAMA_SKIP_STOCK names a folder that has them."""
    given = os.environ.get("LLAMA_SKIP_STOCK")
    folder = Path(given) if given else build_stock(ROOT / "build" / "stock")
    return Build(folder, folder)


def ours() -> Build:
    """The installed library and tools; LLAMA_SKIP_OURS names another folder."""
    given = os.environ.get("LLAMA_SKIP_OURS")
    if given:
        return Build(Path(given), Path(given))
    spec = importlib.util.find_spec("llama_skip")
    folders = [
        Path(p) for p in (spec and spec.submodule_search_locations) or () if (Path(p) / "lib").is_dir()
    ]
    assert folders, "llama_skip is not installed"
    return Build(folders[0] / "lib", folders[0] / "bin")


def smollm2() -> Path:
    """SmolLM2-135M-Instruct Q4_1, 30 blocks, as the demo finds it."""
    from llama_skip.files.smollm2 import smollm2

    return smollm2()


def llama_cpp() -> Path:
    """The folder to import llama_cpp from; LLAMA_CPP_LIB_PATH says which library it loads."""
    return llama_cpp_package(ROOT / "build" / "stock")
