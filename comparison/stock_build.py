"""Builds the unpatched llama.cpp that the tests compare with, from the pinned source, once."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
TARGETS = [
    "llama",
    "llama-quantize",
    "llama-gguf-split",
    "llama-perplexity",
    "llama-completion",
    "llama-bench",
    "llama-imatrix",
    "ggml-rpc-server",
    "test-llama-archs",
]
FLAGS = re.compile(
    r"^((?:GGML_[A-Z0-9_]+|BUILD_SHARED_LIBS|CMAKE_BUILD_TYPE|CMAKE_C(?:XX)?_(?:COMPILER|FLAGS(?:_RELEASE)?))"
    r":(?:BOOL|STRING|FILEPATH)=.+)$",
    re.MULTILINE,
)


def flags_of_ours() -> list[str]:
    """What our own build was configured with, where its build folder is still there."""
    caches = [p for p in (ROOT / "build").glob("*/CMakeCache.txt") if p.parent.name != "stock"]
    if not caches:
        return ["-DCMAKE_BUILD_TYPE:STRING=Release"]
    text = max(caches, key=lambda p: p.stat().st_mtime).read_text()
    return ["-D" + flag for flag in FLAGS.findall(text) if not flag.endswith("-NOTFOUND")]


def run(*command: object) -> None:
    done = subprocess.run(
        [str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}")


def program(name: str) -> str:
    """A program on PATH, or beside the interpreter where the wheel of that name puts it."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if not found:
        raise RuntimeError(f"{name} was not found: pip install {name}")
    return found


def build_stock(folder: Path) -> Path:
    """Return the folder of libllama.so and the tools; a second call builds nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        return _build_stock(folder)


def _build_stock(folder: Path) -> Path:
    source, build = folder / "source", folder / "build"
    options = ROOT / "cmake" / "options.cmake"
    flags = flags_of_ours()
    decide = [ROOT / "LLAMA_CPP_VERSION", options, options.with_name("amx.cmake")]
    state = "".join(file.read_text() for file in decide) + repr((flags, TARGETS))
    stamp, stamp_file = hashlib.sha256(state.encode()).hexdigest(), folder / "stamp"
    if stamp_file.is_file() and stamp_file.read_text() == stamp:
        return build / "bin"
    print("building the unpatched llama.cpp, some minutes, once", file=sys.stderr)
    run(sys.executable, ROOT / "cmake" / "vendor.py", "--plain", source)
    ninja = program("ninja")
    run(
        *(program("cmake"), "-C", options, "-S", source, "-B", build, "-G", "Ninja"),
        *(f"-DCMAKE_MAKE_PROGRAM={ninja}", *flags, "-DLLAMA_BUILD_TESTS=ON"),
    )
    run(program("cmake"), "--build", build, "--parallel", os.cpu_count() or 1, "--target", *TARGETS)
    stamp_file.write_text(stamp)
    return build / "bin"


def llama_cpp_package(folder: Path) -> Path:
    """Return the folder that holds llama-cpp-python's llama_cpp, from the pinned sdist, without a library."""
    package = folder / "llama-cpp-python"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        vendor = [sys.executable, ROOT / "cmake" / "vendor.py", "--source", ""]
        run(*vendor, "--member", "llama_cpp", "--plain", package / "llama_cpp")
    return package
