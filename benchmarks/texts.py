"""Texts of several kinds: from a folder, or from what a Python installation and a Debian system hold."""

from __future__ import annotations

import random
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from itertools import chain, zip_longest
from pathlib import Path

LICENCES = Path("/usr/share/common-licenses")
LICENCE = re.compile(r"(LICEN[CS]E|COPYING)\b", re.IGNORECASE)
MARKUP = (".html", ".json", ".md", ".rst", ".svg", ".toml", ".xml")
BYTES_A_TOKEN = 16  # more than any tokenizer averages on a text

Candidates = dict[str, Iterator[tuple[str, bytes]]]


def from_folder(folder: Path) -> Candidates:
    """Yield name and text of FOLDER/KIND/*.txt, by kind.

    Raises:
        ValueError: no such file.
    """
    kinds = sorted({path.parent for path in folder.glob("*/*.txt")})
    if not kinds:
        raise ValueError(f"{folder}: expected files KIND/*.txt")
    return {
        kind.name: ((path.name, path.read_bytes()) for path in sorted(kind.glob("*.txt"))) for kind in kinds
    }


def installed(prose: Path, n: int, size: int) -> Candidates:
    """Yield name and text of what is here, by kind, in an order that depends on nothing else.

    Args:
        prose: a file of prose, from which n passages are taken.
        size: bytes of a passage at most; files that are long enough begin a third of the way in.
    """
    library = Path(sysconfig.get_path("stdlib"))
    return {
        "prose": passages(prose, n, size),
        "code": files(shuffled(library.glob("*.py")), size),
        "licences": files(licences(), size),
        "markup": files(markup([library, Path(sysconfig.get_path("purelib"))]), size),
    }


def passages(path: Path, n: int, size: int) -> Iterator[tuple[str, bytes]]:
    """Yield n passages of a file at even distances, each from the beginning of a line."""
    text = path.read_bytes()
    for i in range(n):
        start = text.find(b"\n", i * len(text) // n) + 1
        yield f"{path.name}:{start}", text[start : start + size]


def files(paths: Iterable[Path], size: int) -> Iterator[tuple[str, bytes]]:
    """Yield a passage of each file, from the line that a third of it is in."""
    for path in paths:
        text = path.read_bytes()
        start = text.find(b"\n", len(text) // 3) + 1
        yield path.name, text[start : start + size]


def shuffled(paths: Iterable[Path]) -> list[Path]:
    found = sorted({path.resolve() for path in paths if path.is_file()})
    random.Random(0).shuffle(found)
    return found


def licences() -> Iterator[Path]:
    """Yield files of licences: the system's, then those of installed distributions; each licence once."""
    of_distributions = (
        Path(str(file.locate()))
        for distribution in metadata.distributions()
        for file in distribution.files or ()
        if LICENCE.match(file.name)
    )
    known = set()
    for path in chain(sorted(LICENCES.glob("*")), sorted(of_distributions)):
        if path.is_file():
            title = tuple(path.read_bytes().split()[:8])
            if title not in known:
                yield path
            known.add(title)


def markup(folders: Iterable[Path]) -> Iterator[Path]:
    """Yield files of markup and data, of each suffix in turn."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.suffix in MARKUP]
    by_suffix = [shuffled(path for path in paths if path.suffix == suffix) for suffix in MARKUP]
    return (path for row in zip_longest(*by_suffix) for path in row if path is not None)


def take(
    candidates: Candidates, tokenize: Callable[[bytes], list[int]], n: int | None, n_tokens: int
) -> list[tuple[str, str, list[int]]]:
    """Return kind, name and the first tokens of texts that have so many.

    Args:
        n: texts of each kind; None: all of them.

    Raises:
        ValueError: fewer texts of a kind that are long enough.
    """
    found = []
    for kind, texts in candidates.items():
        of_kind: list[tuple[str, str, list[int]]] = []
        for name, text in texts:
            tokens = tokenize(text[: n_tokens * BYTES_A_TOKEN])
            if len(tokens) >= n_tokens:
                of_kind.append((kind, name, tokens[:n_tokens]))
            if len(of_kind) == n:
                break
        if len(of_kind) < (n or 1):
            raise ValueError(f"{kind}: {len(of_kind)} texts have {n_tokens} tokens: name others with --texts")
        found += of_kind
    return found
