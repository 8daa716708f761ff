"""`llama-skip doctor`: what this installation can use, and what stands in its way."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TypedDict

from llama_skip import _core
from llama_skip.cli.command import Parser, run

MIB = 1024 * 1024


class Device(TypedDict):
    """One device that llama.cpp sees; memory in MiB, 0 where it does not say."""

    name: str
    description: str
    type: str
    backend: str
    memory_free: float
    memory_total: float


class Library(TypedDict):
    """A library of a back-end: the back-end's name where it was loaded, else "" and the reason why not."""

    path: str
    backend: str
    reason: str


class Report(TypedDict):
    """What `llama-skip doctor --json` prints."""

    version: str
    upstream: str
    library: str
    backends: list[str]
    backend_folder: str
    backend_libraries: list[Library]
    devices: list[Device]
    warnings: list[str]


def examine() -> Report:
    """Return what there is; nothing is loaded but the back-ends."""
    devices: list[Device] = [
        {
            "name": d.name,
            "description": d.description,
            "type": d.type,
            "backend": d.backend,
            "memory_free": round(d.memory_free / MIB, 1),
            "memory_total": round(d.memory_total / MIB, 1),
        }
        for d in _core.devices()
    ]
    return {
        "version": _core.version(),
        "upstream": _core.upstream(),
        "library": str(_core.library_path()),
        "backends": _core.backends(),
        "backend_folder": str(_core.backend_folder()),
        "backend_libraries": libraries(),
        "devices": devices,
        "warnings": shadowed(installed_tools()),
    }


def libraries() -> list[Library]:
    """Return the libraries of back-ends, the loaded ones first, then those in their folder that were not."""
    names = zip(_core.backends(), _core.backend_libraries(), strict=True)
    loaded = {path.resolve(): name for name, path in names if path.name}  # a server's has none
    folder = _core.backend_folder()
    found = [*folder.glob("libggml-*.so"), *folder.glob("ggml-*.dll")]
    if path := os.environ.get("GGML_BACKEND_PATH"):
        found.append(Path(path))
    others = sorted({path.resolve() for path in found if kind(path) != "base"} - loaded.keys())
    best = {kind(path): path.name for path in loaded}
    report: list[Library] = [{"path": str(p), "backend": name, "reason": ""} for p, name in loaded.items()]
    return report + [{"path": str(p), "backend": "", "reason": reason(p, best)} for p in others]


def kind(path: Path) -> str:
    """Return which back-end a file is of: `cpu` for libggml-cpu-haswell.so."""
    return path.name.removeprefix("lib").removeprefix("ggml-").partition(".")[0].partition("-")[0]


def reason(path: Path, loaded: Mapping[str, str]) -> str:
    """Return why llama.cpp did not load a library, by trying where none of its kind is loaded."""
    if kind(path) in loaded:
        return f"one of a kind is enough, {loaded[kind(path)]} suits this processor better"
    try:
        _core.load_backend(path)
    except RuntimeError as err:
        return " ".join(str(err).split()).replace(f"{path}: ", "").replace(str(path), path.name)
    return "llama.cpp looks for no back-end of this name: GGML_BACKEND_PATH names a file to load"


def installed_tools() -> list[Path]:
    """Return the command-line tools that were installed with this package."""
    try:
        dist = distribution("llama-skip")
    except PackageNotFoundError:
        return []
    commands = {e.name for e in dist.entry_points if e.group == "console_scripts"}
    scripts = [f for f in dist.files or [] if f.stem in commands and "llama_skip" not in f.parts]
    paths = [Path(str(dist.locate_file(f))) for f in scripts]
    return [Path(os.path.normpath(p)) for p in paths if p.is_file() and p.suffix in ("", ".exe")]


def shadowed(tools: Sequence[Path]) -> list[str]:
    """Return a warning for each tool whose name runs another program, and one for those that nothing runs."""
    warnings = []
    absent = []
    for tool in sorted(tools):
        found = shutil.which(tool.stem)
        if found is None:
            absent.append(tool)
        elif not os.path.samefile(found, tool):
            warnings.append(f"{tool.stem} on PATH is {found}, another program: put {tool.parent} before it")
    if absent:
        commands = ", ".join(tool.stem for tool in absent)
        warnings.append(f"{absent[0].parent} is not on PATH, it has {commands}")
    return warnings


def summary(report: Report) -> str:
    """Return the report in one line."""
    devices = ", ".join(f"{d['name']} ({d['description']})" for d in report["devices"])
    return (
        f"llama-skip {report['version']} (llama.cpp {report['upstream']}); "
        f"back-ends: {', '.join(report['backends'])}; devices: {devices}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print a report; the exit code is 0 also with warnings."""
    parser = Parser(prog="llama-skip doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args(argv)
    return run(lambda: _print(examine(), as_json=args.json))


def _print(report: Report, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps(report, indent=2))
        return 0
    print(summary(report))
    print(f"library: {report['library']}")
    print(f"back-ends are looked for in {report['backend_folder']}")
    left: dict[str, list[str]] = {}
    for lib in report["backend_libraries"]:
        if lib["backend"]:
            print(f"loaded:  {lib['backend']} from {lib['path']}")
        else:
            left.setdefault(lib["reason"], []).append(Path(lib["path"]).name)
    for why, names in left.items():
        print(f"left:    {', '.join(names)}: {why}")
    for d in report["devices"]:
        memory = f", {d['memory_free']:.0f} of {d['memory_total']:.0f} MiB free" if d["memory_total"] else ""
        print(f"device:  {d['name']}: {d['description']} ({d['type']}, {d['backend']}{memory})")
    for warning in report["warnings"]:
        print(f"warning: {warning}")
    return 0
