"""An architecture whose loop does not step over the blocks left out is refused, not wrong.

One model file is compiled again, its loop with a plain number as the bound, and put in front of the
library's own: what a new upstream architecture with a loop of its own would be.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.matrix.arch_files import Base, make, write

from comparison.builds import Build
from comparison.stock_build import ROOT

LOOP = "for (int il = 0; il < n_layer; ++il)"
PROGRAM = """
import sys
from comparison.libllama import Library
from support.matrix.arch_run import outcomes

library, path, layers, mask = sys.argv[1:]
override = {"skip.layers": layers} if layers else {}
found = outcomes(Library(library), path, override, masks=[mask or None], flashes=["off"])[0][0]
print(found if isinstance(found, str) else "decoded")
"""


@pytest.fixture(scope="module")
def shim(ours: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with upstream's src/models/starcoder2.cpp whose loop does not go by the graph's n_layer."""
    if not sys.platform.startswith("linux"):
        pytest.skip("takes LD_PRELOAD")
    source = Path(os.environ.get("LLAMA_SKIP_OURS_SOURCE") or ROOT / "vendor" / "llama.cpp")
    folder = tmp_path_factory.mktemp("shim")
    text = (source / "src" / "models" / "starcoder2.cpp").read_text()
    assert text.count(LOOP) == 1
    file, library = folder / "starcoder2.cpp", folder / "libshim.so"
    file.write_text(text.replace(LOOP, "for (int il = 0; il < (int64_t) n_layer; ++il)"))
    include = [source / d for d in ("src/models", "src", "include", "ggml/include")] + [ROOT / "csrc"]
    subprocess.run(
        [
            *(os.environ.get("CXX", "c++"), "-std=c++17", "-fPIC", "-shared", "-o", library, file),
            *(f"-I{folder}" for folder in include),
            *(f"-L{ours.lib}", "-lllama", f"-Wl,-rpath,{ours.lib}"),
        ],
        check=True,
    )
    return library


def run(ours: Build, path: Path, preload: Path | None, layers: str = "", mask: str = "") -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    if preload:
        env["LD_PRELOAD"] = str(preload)
    command = [sys.executable, "-c", PROGRAM, str(ours.lib), str(path), layers, mask]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout.strip()


def test_a_loop_that_does_not_step_is_refused(
    stock: Build, ours: Build, bases: dict[str, Base], shim: Path, tmp_path: Path
) -> None:
    model = make(stock, tmp_path, bases, "starcoder2-dense")
    path = write(tmp_path / "model.gguf", model.arch, model.metadata, model.tensors)
    for layers, mask in (("1-2", ""), ("", "1-2"), ("4", ""), ("0", "1-2")):
        assert run(ours, path, None, layers, mask) == "decoded"
        said = run(ours, path, shim, layers, mask)
        assert "architecture 'starcoder2' cannot leave out blocks" in said
        assert "its graph does not step over them" in said
    assert "no context" in run(ours, path, shim, "1-2")
    assert run(ours, path, shim) == "decoded"
