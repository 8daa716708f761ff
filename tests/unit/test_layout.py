"""The rooms of the package: imports go down only, and a folder stays small enough to be read at a glance."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "python" / "llama_skip"
MOST_FILES = 16  # __init__.py among them

# from the bottom up; each imports from those before it alone
ORDER = ["errors", "progress", "_core", "skipset", "files", "model", "openai", "llama", "bypass", "measure"]
ORDER += ["score", "plan", "heal", "eval", "report", "bake", "bench", "cli"]
APART = ["_tools", "compat"]  # a launcher and a shim: they import _core at most, and nothing imports them


def imported(path: Path) -> Iterator[str]:
    """Yield the modules of llama_skip that a file imports, as dotted names without the package's."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "llama_skip":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llama_skip."):
            module = str(node.module).partition(".")[2]
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield inner if (PACKAGE / inner.replace(".", "/")).with_suffix(".py").is_file() else module
        elif isinstance(node, ast.Import):
            names = (alias.name.partition(".") for alias in node.names)
            yield from (rest for package, _, rest in names if package == "llama_skip" and rest)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def test_every_room_has_its_place_in_the_order() -> None:
    assert {module_of(path).partition(".")[0] for path in FILES} | {"_core"} == {*ORDER, *APART}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_down(path: Path) -> None:
    own = module_of(path).partition(".")[0]
    below = ["_core"] if own in APART else ORDER[: ORDER.index(own) + 1]
    above = {module for module in imported(path) if module.partition(".")[0] not in below}
    assert not above


def test_no_circle_of_files() -> None:
    graph = {module_of(path): {*imported(path)} for path in FILES}
    while graph:
        leaves = {module for module, needs in graph.items() if not needs & graph.keys()}
        assert leaves, f"a circle among {', '.join(sorted(graph))}"
        graph = {module: needs for module, needs in graph.items() if module not in leaves}


def test_no_test_imports_another_and_no_benchmark_a_test() -> None:
    tests = [*(ROOT / "tests").rglob("*.py")]
    others = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "comparison").glob("*.py")]
    assert not [
        path.name
        for path in others
        if re.search(r"^\s*(from|import) (support|tests)\b", path.read_text(), re.M)
    ]
    found = [
        f"{path.name}: {module}"
        for path in tests
        for node in ast.walk(ast.parse(path.read_text()))
        for module in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        if module.rpartition(".")[2].startswith("test_")
    ]
    assert not found


@pytest.mark.parametrize("folder", ["python/llama_skip", "tests", "csrc", "docs", "benchmarks", "examples"])
def test_folders_are_small(folder: str) -> None:
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", folder]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode != 0:
        pytest.skip("not a git checkout")
    sizes = Counter(str(Path(line).parent) for line in found.stdout.splitlines())
    assert not {name: n for name, n in sizes.items() if n > MOST_FILES}
