"""Back-ends that are libraries of their own, in a package whose path has spaces and other letters."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comparison.builds import Build
from comparison.stock_build import ROOT

FOLDER = "ein Ordner für 模型"


@pytest.fixture(scope="module")
def package(ours: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import a copy of the installed package from."""
    here = ours.lib.parent
    if not (here / "_core.pyi").is_file():
        pytest.skip("LLAMA_SKIP_OURS names libraries outside the package")
    folder = tmp_path_factory.mktemp("package") / FOLDER
    for part in (here, here.with_name("llama_skip.libs")):  # a repaired wheel has both
        if part.is_dir():
            shutil.copytree(part, folder / part.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def backend(ours: Build) -> Callable[..., Path]:
    """From a file's name and definitions to a back-end's library that was compiled for it."""
    compiler = shutil.which("c++")
    assert compiler, "a C++ compiler is needed, as for the build"
    ggml = Path(os.environ.get("LLAMA_SKIP_OURS_SOURCE") or ROOT / "vendor" / "llama.cpp") / "ggml"

    def build(path: Path, *definitions: str) -> Path:
        words = [compiler, "-std=c++17", "-shared", "-fPIC", "-o", str(path)]
        words += ["-DGGML_BACKEND_DL", "-DGGML_BACKEND_BUILD", "-DGGML_BACKEND_SHARED", *definitions]
        words += [str(ROOT / "tests" / "support" / "empty_backend.cpp")]
        words += [f"-I{ggml / 'include'}", f"-I{ggml / 'src'}", f"-L{ours.lib}", "-lggml-base"]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return path

    return build


def doctor(package: Path, **env: str) -> Any:
    words = [sys.executable, "-c", "from llama_skip.cli import main; main(['doctor', '--json'])"]
    whole = {**os.environ, "PYTHONPATH": str(package), **env}
    done = subprocess.run(words, env=whole, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["backend_folder"] == str(package / "llama_skip" / "bin")
    return report


def libraries(report: Any) -> dict[str, tuple[str, str]]:
    return {Path(b["path"]).name: (b["backend"], b["reason"]) for b in report["backend_libraries"]}


def test_libraries_in_the_folder_of_the_tools(package: Path, backend: Callable[..., Path]) -> None:
    """Found by Python and by the tools; of the others the doctor says why they are not loaded."""
    folder = package / "llama_skip" / "bin"
    backend(folder / "libggml-cann.so")
    backend(folder / "libggml-cann-other.so")
    backend(folder / "libggml-hip.so", "-DAPI_VERSION=99")
    backend(folder / "libggml-musa.so", "-DNO_INIT")
    backend(folder / "libggml-unheard.so")
    (folder / "libggml-cuda.so").write_bytes(b"no library")

    report = doctor(package)
    assert "EMPTY" in report["backends"]
    found = libraries(report)
    assert found["libggml-cann.so"] == ("EMPTY", "")
    assert {name for name, (backend, _) in found.items() if backend == "CPU"}
    reasons = {name: reason for name, (_, reason) in found.items() if reason}
    assert "libggml-cann.so suits this processor better" in reasons["libggml-cann-other.so"]
    assert "incompatible API version (backend: 99" in reasons["libggml-hip.so"]
    assert "failed to find ggml_backend_init" in reasons["libggml-musa.so"]
    assert "looks for no back-end of this name" in reasons["libggml-unheard.so"]
    assert "failed to load" in reasons["libggml-cuda.so"]
    assert str(folder) not in "".join(reasons.values())

    done = subprocess.run([folder / "llama-completion", "--list-devices"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "EMPTY was asked for its devices" in done.stderr
    for path in folder.glob("libggml-*.so"):
        if path.name in {"libggml-cann.so", "libggml-cann-other.so", *reasons}:
            path.unlink()


def test_one_library_by_its_path(package: Path, backend: Callable[..., Path], tmp_path: Path) -> None:
    library = backend(tmp_path / "libggml-mine.so")
    assert libraries(doctor(package, GGML_BACKEND_PATH=str(library)))["libggml-mine.so"] == ("EMPTY", "")
    (tmp_path / "libggml-bad.so").write_bytes(b"no library")
    found = libraries(doctor(package, GGML_BACKEND_PATH=str(tmp_path / "libggml-bad.so")))
    assert found["libggml-bad.so"][0] == ""
    assert "failed to load" in found["libggml-bad.so"][1]


def test_package_model_and_plan_in_such_a_folder(
    ours: Build, package: Path, smollm2: Path, tmp_path: Path
) -> None:
    """The tools and Python read all three, and write the same as from a plain folder."""
    folder = tmp_path / FOLDER
    folder.mkdir()
    model = shutil.copy(smollm2, folder / "ein Modell.gguf")
    program = """if True:
        import sys
        from llama_skip import Llama, Plan, identify, write_plan
        model, plan = sys.argv[1:]
        write_plan(plan, Plan(identify(model), "5,25"))
        with Llama(model, skip_layers="@" + plan, n_threads=1, verbose=False, n_ctx=512) as llm:
            print(llm("The old man", max_tokens=8, temperature=0)["choices"][0]["text"])
    """
    plan = folder / "ein Plan.json"
    env = {**os.environ, "PYTHONPATH": str(package)}
    words = [sys.executable, "-c", program, str(model), str(plan)]
    python = subprocess.run(words, env=env, capture_output=True, text=True)
    assert python.returncode == 0, python.stderr
    there = Build(package / "llama_skip" / "lib", package / "llama_skip" / "bin")
    here = ours.complete(smollm2, "--skip-layers", "5,25")
    assert there.complete(Path(model), "--skip-layers", f"@{plan}").stdout == here.stdout
    assert python.stdout.strip() and python.stdout.strip() in here.stdout
