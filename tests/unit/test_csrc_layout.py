"""The folders of csrc: who may include whom, and what stands where. No library and no model."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"

# bottom up; a file is of the longest entry that it begins with
ORDER = [
    "llama-skip.h",
    "backends",
    "set",
    "bypass",
    "plan",
    "disk",
    "graph",
    "load",
    "context",
    "api.cpp",
    "tiers",
    "common",
    "bindings",
    "bindings/model",
    "bindings/context",
    "bindings/generate",
    "bindings/module.cpp",
    "hooks.h",
]
FILES = sorted(p.relative_to(CSRC).as_posix() for p in CSRC.rglob("*") if p.suffix in (".h", ".cpp"))
TEXTS = {name: (CSRC / name).read_text() for name in FILES}
PATCHES = {p.name: p.read_text() for p in sorted((ROOT / "patches").glob("*.patch"))}

KEYWORDS = {"if", "for", "while", "switch", "return", "sizeof", "static_assert", "defined", "decltype"}


def included(text: str) -> list[str]:
    return re.findall(r'^#include "([^"]+)"', text, re.MULTILINE)


def ours(name: str) -> list[str]:
    """The files of csrc that a file of csrc includes."""
    return [i for i in included(TEXTS[name]) if i in TEXTS]


def floor(name: str) -> int:
    return ORDER.index(max((e for e in ORDER if name == e or name.startswith(e + "/")), key=len))


def declared(text: str) -> set[str]:
    """The functions that a header declares at its top level, without those that it defines itself."""
    text = re.sub(r"//[^\n]*|^#(?:[^\n]*\\\n)*[^\n]*|extern \"C\" \{", "", text, flags=re.MULTILINE)
    while (shorter := re.sub(r"\{[^{}]*\}", ";", text)) != text:
        text = shorter
    statements = [" ".join(s.split()) for s in text.split(";")]
    found = [re.match(r"[^(=]*?\b(\w+)\((?!\*)", s) for s in statements]
    return {m[1] for m in found if m and m[1] not in KEYWORDS}


def defined(text: str) -> set[str]:
    """The functions whose body begins in a file, by lines that begin in the first column."""
    return set(re.findall(r"^[A-Za-z][^;{}=\n]*?\b([\w~]+)\([^;{}]*\)[^;{}]*\{", text, re.MULTILINE))


def test_every_file_has_a_floor() -> None:
    assert all(any(name == e or name.startswith(e + "/") for e in ORDER) for name in FILES)


def test_no_include_goes_up() -> None:
    up = [f"{name} includes {other}" for name in FILES for other in ours(name) if floor(other) > floor(name)]
    assert not up


def test_includes_read_as_paths_from_csrc() -> None:
    """A bare name would be one of upstream's, never of the folder that the file is in."""
    near = [
        f"{name}: {i}"
        for name in FILES
        for i in included(TEXTS[name])
        if i not in TEXTS and (CSRC / name).parent.joinpath(i).exists()
    ]
    assert not near


def test_no_circle_of_includes() -> None:
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for other in ours(name):
                visit(other, (*above, name))
            done.add(name)

    for name in FILES:
        visit(name, ())


def test_patches_include_hooks_alone() -> None:
    added = re.findall(r"^\+#include (.+)", "\n".join(PATCHES.values()), re.MULTILINE)
    assert set(added) == {'"hooks.h"'}
    assert not [name for name in FILES if "hooks.h" in included(TEXTS[name])]


def test_hooks_include_nothing_that_is_patched() -> None:
    """Upstream's patched headers include hooks.h: it must not come to include them."""
    patched = set(re.findall(r"^\+\+\+ b/(?:src|common)/(\S+\.h)", "\n".join(PATCHES.values()), re.MULTILINE))
    assert "llama-hparams.h" in patched
    seen, todo = set(), ["hooks.h"]
    while todo:
        name = todo.pop()
        seen.add(name)
        assert not patched & set(included(TEXTS[name])), name
        todo += [other for other in ours(name) if other not in seen]


def test_one_header_one_source() -> None:
    missing = []
    for name in FILES:
        if name.endswith(".h") and name != "hooks.h" and (names := declared(TEXTS[name])):
            source = "api.cpp" if name == "llama-skip.h" else name[:-2] + ".cpp"
            there = defined(TEXTS.get(source, ""))
            missing += [f"{name}: {n}" for n in sorted(names - there - defined(TEXTS[name]))]
    assert not missing


def test_sizes() -> None:
    sources = [*(CSRC / n for n in FILES), *(ROOT / "tests").rglob("*.cpp")]
    lines = {p: p.read_text().splitlines() for p in sources}
    assert not [f"{p.name}:{i}" for p, text in lines.items() for i, t in enumerate(text, 1) if len(t) > 120]
    assert not [p.name for p, text in lines.items() if len(text) > 300]
    folders = [p for p in (CSRC, *CSRC.rglob("*")) if p.is_dir()]
    assert not [p.name for p in folders if len(list(p.iterdir())) > 16]
