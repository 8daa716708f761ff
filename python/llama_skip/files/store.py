"""Files that are written whole or not at all, and JSON with a format and a version."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import msgspec

StrPath = str | os.PathLike[str]
T = TypeVar("T")


class Format(NamedTuple):
    """What a JSON file is, and the version that this program writes and reads."""

    format: str
    version: int


@contextmanager
def replacing(path: StrPath) -> Iterator[IO[bytes]]:
    """Yield a file that takes the place of `path` when the block ends, and leaves nothing behind if it fails.

    Raises:
        OSError: the folder cannot be written, or is full.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(21, os.strerror(21), str(path))
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        file = part.open("x+b")
    except OSError as err:
        raise type(err)(err.errno, err.strerror, str(path)) from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            part.chmod(target.stat().st_mode & 0o777)
        part.replace(target)
    except BaseException as err:
        with suppress(OSError):
            part.unlink()
        if isinstance(err, OSError) and err.filename in (None, str(part)):
            raise type(err)(err.errno, err.strerror, str(path)) from None
        raise


def check_writable(path: StrPath) -> None:
    """Raise OSError where replacing(path) would, before long work begins."""
    target = Path(path)
    existed = target.exists()
    if not existed or target.is_dir():
        with replacing(path):
            pass
        target.unlink()
    elif not os.access(target.parent, os.W_OK):
        raise PermissionError(13, os.strerror(13), str(path))


def part_path(output: StrPath) -> Path:
    """Return where unfinished work for `output` is kept, OUTPUT.part.

    The same call goes on from there. What was begun with other settings is begun anew; a file that cannot be
    read is an error, since it is nothing that a stopped run leaves.
    """
    return Path(f"{os.fspath(output)}.part")


def is_one_of(path: StrPath, others: Iterable[StrPath]) -> bool:
    """Return whether `path` exists and is the same file as one of `others`."""
    return os.path.exists(path) and any(os.path.samefile(path, other) for other in others)


def write_json(path: StrPath, kind: Format, content: Mapping[str, Any]) -> None:
    """Write `content` as JSON of the format `kind`.

    Raises:
        OSError: the file cannot be written; what it held before stays.
        ValueError: a NaN or an infinity, which JSON does not have.
    """
    text = json_text(kind, content)
    with replacing(path) as file:
        file.write(text.encode() + b"\n")


def json_text(kind: Format, content: Mapping[str, Any]) -> str:
    """Return `content` as JSON of the format `kind`.

    Raises:
        ValueError: a NaN or an infinity, which JSON does not have.
    """
    return json.dumps({**kind._asdict(), **content}, indent=1, allow_nan=False)


def read_json(path: StrPath, *kinds: Format) -> dict[str, Any]:
    """Return what write_json() wrote.

    Args:
        path: the file.
        kinds: the formats and versions that it may have.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, of another format, or of a newer version.
    """
    return parse_json(Path(path).read_bytes(), path, *kinds)


def parse_json(text: str | bytes, path: StrPath, *kinds: Format) -> dict[str, Any]:
    """Return what json_text() made, as read_json() does; `path` is for messages."""
    try:
        content: Any = json.loads(text)
    except ValueError as err:
        raise ValueError(f"{path}: not a JSON file: {err}") from None
    found = str(content.get("format")) if isinstance(content, dict) else None
    formats = dict.fromkeys(kind.format for kind in kinds)
    if found not in formats:
        raise ValueError(f"{path}: expected a file of format {' or '.join(formats)}, not {found}")
    version, known = content.get("version"), [kind.version for kind in kinds if kind.format == found]
    if version not in known:
        words = " and ".join(map(str, known))
        raise ValueError(f"{path}: version {version} of {found}, this program knows {words}")
    return dict(content)


def typed(content: Mapping[str, Any], kind: type[T], path: StrPath, what: str) -> T:
    """Return the content of a file as a dataclass, types checked; keys that it lacks are passed over.

    Args:
        content: what read_json() returned.
        kind: the dataclass.
        path: the file, for messages.
        what: how a message names the format.

    Raises:
        ValueError: something is missing, or of another type.
    """
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as err:
        raise ValueError(f"{path}: not a whole {what} file: {err}") from None
