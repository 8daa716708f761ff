"""Lay out the llama.cpp source: pinned or a checkout of the user's, patched or plain."""

import argparse
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unidiff.patch import Hunk

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "vendor" / ".cache"
STAMP = ".llama-skip-stamp"
NOT_SOURCE = {".git", "node_modules", "__pycache__"}
NOT_SOURCE_BYTES = 32 << 20  # larger than any source file: somebody's model

Tree = dict[str, bytes]


class VendorError(Exception):
    """A reason, in one sentence, why the source cannot be laid out."""


def read_pin() -> dict[str, str]:
    lines = (ROOT / "LLAMA_CPP_VERSION").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line)


def fetch_sdist(pin: dict[str, str]) -> Path:
    """Return the pinned sdist, downloaded with pip (and its settings) unless cached; its hash is right."""
    name = f"{pin['package'].replace('-', '_')}-{pin['version']}.tar.gz"
    cached = CACHE / name
    if cached.is_file() and sha256(cached) == pin["sha256"]:
        return cached
    if importlib.util.find_spec("pip") is None:
        raise VendorError(f"fetching {pin['package']} needs pip, which {sys.executable} does not have")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        requirement = f"{pin['package']}=={pin['version']}"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", pin["package"]]
        # pip prepares the sdist's metadata; its back-end is ours, so inside our build nothing more is fetched
        if importlib.util.find_spec("scikit_build_core"):
            command.append("--no-build-isolation")
        done = subprocess.run([*command, "-d", folder, requirement], capture_output=True, text=True)
        found = Path(folder) / name
        if done.returncode != 0 or not found.is_file():
            reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
            raise VendorError(
                f"pip could not fetch {requirement} ({reasons[-1] if reasons else 'no reason given'}): "
                "check the network and pip's index settings, or set LLAMA_CPP_SOURCE to a llama.cpp checkout"
            )
        if sha256(found) != pin["sha256"]:
            raise VendorError(f"{name} has sha256 {sha256(found)}, LLAMA_CPP_VERSION says {pin['sha256']}")
        os.replace(found, cached)
    return cached


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_sdist(sdist: Path, member: str) -> Tree:
    tree: Tree = {}
    with tarfile.open(sdist) as archive:
        for info in archive:
            path = info.name.partition("/")[2]
            inside = path.removeprefix(member + "/")
            if info.isfile() and inside != path and inside != ".git":
                file = archive.extractfile(info)
                assert file is not None
                tree[inside] = file.read()
    if not tree:
        raise VendorError(f"{sdist.name} has no folder {member}")
    return tree


def walk_checkout(source: Path) -> list[Path]:
    """List what belongs to a llama.cpp checkout: no repository, build folder or model."""
    if not (source / "src" / "llama.cpp").is_file():
        raise VendorError(f"LLAMA_CPP_SOURCE: {source} is not a llama.cpp checkout, it has no src/llama.cpp")
    files: list[Path] = []
    for folder, dirs, names in os.walk(source):
        here = Path(folder)
        dirs[:] = sorted(
            d for d in dirs if d not in NOT_SOURCE and not (here / d / "CMakeCache.txt").exists()
        )
        paths = [here / name for name in sorted(names) if name not in (".git", STAMP)]
        files += [p for p in paths if p.is_file() and p.stat().st_size <= NOT_SOURCE_BYTES]
    return files


def read_series() -> list[tuple[str, str]]:
    folder = ROOT / "patches"
    lines = (folder / "series").read_text().splitlines()
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return [(name, (folder / name).read_bytes().decode()) for name in names]


def apply_patch(name: str, text: str, tree: Tree) -> list[str]:
    """Apply one unified diff to the tree, exactly: no fuzz, and only where there is one possible place.

    Returns why hunks were refused, one reason each.
    """
    try:
        from unidiff.errors import UnidiffParseError
        from unidiff.patch import PatchSet
    except ImportError:
        command = f"{sys.executable} -m pip install unidiff"
        raise VendorError(f"applying patches needs the package unidiff: {command}") from None
    try:
        files = PatchSet(text)
    except UnidiffParseError as e:
        raise VendorError(f"patch {name} is malformed: {e}") from None
    if not files:
        raise VendorError(f"patch {name} changes no file")
    refused: list[str] = []
    for file in files:
        path = file.path
        if file.is_removed_file or file.is_rename or file.is_binary_file:
            raise VendorError(f"patch {name}: {path}: only changed and new text files are supported")
        if file.is_added_file == (path in tree):
            state = "already exists" if path in tree else "does not exist"
            raise VendorError(f"patch {name}: {path} {state}")
        if file.is_added_file:
            lines = [*(line.value.rstrip("\n") for hunk in file for line in hunk), ""]
        else:
            lines = tree[path].decode("utf-8", "surrogateescape").split("\n")
            refused += apply_hunks(f"patch {name}: {path}", file, lines)
        tree[path] = "\n".join(lines).encode("utf-8", "surrogateescape")
    return refused


def apply_hunks(where: str, hunks: "list[Hunk]", lines: list[str]) -> list[str]:
    refused: list[str] = []
    done = 0  # lines before this one are final
    drift = 0  # how far from its stated line the last hunk was found
    for number, hunk in enumerate(hunks, 1):
        old = [line.value.rstrip("\n") for line in hunk if line.is_context or line.is_removed]
        new = [line.value.rstrip("\n") for line in hunk if line.is_context or line.is_added]
        stated = hunk.target_start - 1
        which = f"{where}: hunk {number} (line {hunk.source_start})"
        try:
            at = find_hunk(lines, old, done, stated + drift, hunk.section_header, which)
        except VendorError as e:
            refused.append(str(e))
            continue
        lines[at : at + len(old)] = new
        drift = at - stated
        done = at + len(new)
    return refused


def find_hunk(lines: list[str], old: list[str], start: int, stated: int, heading: str, where: str) -> int:
    """Return the index in `lines` where `old` is: under its heading, and at its stated line or only once."""
    if not old:
        raise VendorError(f"{where} has no context line")
    n = len(old)
    places = [i for i in range(start, len(lines) - n + 1) if lines[i] == old[0] and lines[i : i + n] == old]
    if not places:
        raise VendorError(f"{where} does not match this llama.cpp")
    if heading:
        places = [i for i in places if heading_above(lines, i).startswith(heading)] or places
    if stated in places:
        return stated
    if len(places) > 1:
        raise VendorError(f"{where} is ambiguous: it matches this llama.cpp in {len(places)} places")
    return places[0]


def heading_above(lines: list[str], i: int) -> str:
    """Return what diff writes after its second @@: the last line above that starts with a letter, _ or $."""
    return next((line for line in reversed(lines[:i]) if re.match(r"[A-Za-z_$]", line)), "")


def sync(tree: Tree, folder: Path) -> int:
    """Make `folder` equal `tree`, leaving unchanged files as they are; return how many were written."""
    for path in [p for p in folder.rglob("*") if p.is_file() or p.is_symlink()]:
        if path.relative_to(folder).as_posix() not in tree:
            path.unlink()
    written = 0
    for name, data in tree.items():
        path = folder / name
        if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".tmp")
        beside.write_bytes(data)
        os.replace(beside, path)
        written += 1
    return written


def lay_out(folder: Path, *, source: Path | None, member: str, patched: bool) -> str:
    """Fill `folder` unless its stamp says that it holds exactly this already; return what was done."""
    pin = read_pin()
    checkout = walk_checkout(source) if source else []
    series = read_series() if patched else []
    if source and folder.resolve().is_relative_to(source):
        raise VendorError(f"LLAMA_CPP_SOURCE: {source} holds {folder}, which this build fills")
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in checkout]
    state = repr((pin, str(source), stats, member, series, sha256(Path(__file__))))
    stamp = hashlib.sha256(state.encode()).hexdigest()
    stamp_file = folder / STAMP
    if stamp_file.is_file() and stamp_file.read_text() == stamp:
        return f"{folder.name} is up to date"

    if source:
        tree = {path.relative_to(source).as_posix(): path.read_bytes() for path in checkout}
    else:
        tree = read_sdist(fetch_sdist(pin), member)
    refused = [reason for name, text in series for reason in apply_patch(name, text, tree)]
    if refused:
        hunks = sum(len(re.findall("^@@ ", text, re.MULTILINE)) for _, text in series)
        raise VendorError("\n".join([*refused, f"{len(refused)} of {hunks} hunks do not apply"]))
    stamp_file.unlink(missing_ok=True)  # a tree without a stamp is filled again
    written = sync(tree, folder)
    stamp_file.write_text(stamp)
    return f"{folder.name}: {len(series)} patches applied, {written} of {len(tree)} files written"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default=os.environ.get("LLAMA_CPP_SOURCE"), help="checkout to copy")
    parser.add_argument("--plain", type=Path, metavar="DIR", help="fill DIR with the unpatched source")
    parser.add_argument("--member", default="vendor/llama.cpp", help="folder of the sdist to lay out")
    args = parser.parse_args(argv)
    folder = args.plain or ROOT / "vendor" / "llama.cpp"
    source = Path(args.source).resolve() if args.source else None
    try:
        print(lay_out(folder, source=source, member=args.member, patched=args.plain is None))
    except (VendorError, OSError, tarfile.TarError) as e:
        print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
