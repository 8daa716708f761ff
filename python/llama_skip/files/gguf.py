"""GGUF files as metadata entries and tensors whose bytes are copied without being understood."""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quant_shape_to_byte_shape
from gguf import GGUFValueType as Kind

from llama_skip.files.store import StrPath
from llama_skip.progress import Progress

MAGIC, VERSION = b"GGUF", 3
CHUNK = 4 * 1024 * 1024
SCALARS = {
    Kind.UINT8: "B",
    Kind.INT8: "b",
    Kind.UINT16: "H",
    Kind.INT16: "h",
    Kind.UINT32: "I",
    Kind.INT32: "i",
    Kind.FLOAT32: "f",
    Kind.BOOL: "?",
    Kind.UINT64: "Q",
    Kind.INT64: "q",
    Kind.FLOAT64: "d",
}


@dataclass(frozen=True)
class Entry:
    """A metadata entry; `raw` is its value as in the file, behind the type."""

    key: str
    kind: Kind
    raw: bytes

    @property
    def value(self) -> Any:
        """The value: a number, a text (bytes that are not UTF-8 replaced), or a list."""
        return _Cursor(self.raw).value(self.kind)


@dataclass(frozen=True)
class Tensor:
    """A tensor: its GGML type as a number, `span` bytes at `offset` of `path`, padding included."""

    name: bytes
    shape: tuple[int, ...]
    type: int
    path: Path
    offset: int
    span: int

    def data(self) -> tuple[npt.NDArray[Any], GGMLQuantizationType]:
        """Return its numbers, or rows of bytes where its type is quantised, and the type."""
        kind = GGMLQuantizationType(self.type)
        shape = self.shape[::-1]
        dtype = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(
            kind, np.uint8
        )
        if dtype is np.uint8:
            shape = quant_shape_to_byte_shape(shape, kind)
        found = np.fromfile(self.path, dtype, math.prod(shape), offset=self.offset)
        return found.reshape(shape), kind


@dataclass(frozen=True)
class Gguf:
    """A model's metadata without what describes a split, its tensors in order, and the files they are in."""

    entries: dict[str, Entry]
    tensors: list[Tensor]
    paths: list[Path]

    def value(self, key: str, default: Any = None) -> Any:
        """Return a metadata value."""
        entry = self.entries.get(key)
        return default if entry is None else entry.value

    @property
    def architecture(self) -> str:
        return str(self.value("general.architecture", ""))

    @property
    def alignment(self) -> int:
        return int(self.value("general.alignment", 32))


class _Cursor:
    """Reads a little-endian buffer from front to back; struct.error at its end."""

    def __init__(self, data: Any, pos: int = 0) -> None:
        self.data, self.pos = data, pos

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.pos)
        self.pos += struct.calcsize(f"<{code}")
        return value

    def bytes(self) -> bytes:
        size = self.number("Q")
        if size > len(self.data) - self.pos:
            raise struct.error("a text is longer than the file")
        self.pos += size
        return bytes(self.data[self.pos - size : self.pos])

    def value(self, kind: Kind) -> Any:
        if kind == Kind.STRING:
            return self.bytes().decode("utf-8", "replace")
        if kind != Kind.ARRAY:
            return self.number(SCALARS[kind])
        item, n = Kind(self.number("I")), self.number("Q")
        if item in (Kind.STRING, Kind.ARRAY):
            return [self.value(item) for _ in range(n)]
        found = struct.unpack_from(f"<{n}{SCALARS[item]}", self.data, self.pos)
        self.pos += struct.calcsize(f"<{n}{SCALARS[item]}")
        return list(found)

    def skip(self, kind: Kind) -> None:
        if kind == Kind.STRING:
            self.pos += 8 + struct.unpack_from("<Q", self.data, self.pos)[0]
        elif kind == Kind.ARRAY:
            item, n = Kind(self.number("I")), self.number("Q")
            if item in SCALARS:
                self.pos += n * struct.calcsize(f"<{SCALARS[item]}")
            else:
                for _ in range(n):
                    self.skip(item)
        else:
            self.pos += struct.calcsize(f"<{SCALARS[kind]}")

    def entry(self) -> Entry:
        key = self.bytes().decode("utf-8", "replace")
        kind = Kind(self.number("I"))
        start = self.pos
        self.skip(kind)
        if self.pos > len(self.data):
            raise struct.error("a value is longer than the file")
        return Entry(key, kind, bytes(self.data[start : self.pos]))


def read_gguf(path: StrPath) -> Gguf:
    """Return what is in a GGUF file, and in the others of a split model whose first one it is.

    Raises:
        OSError: a file cannot be read.
        ValueError: not a GGUF file, cut short, or not the first of a split model.
    """
    first = _read_one(Path(path))
    paths = _split_paths(Path(path), first)
    tensors = list(first.tensors)
    for other in paths[1:]:
        part = _read_one(other)
        if part.alignment != first.alignment:
            raise ValueError(f"{other}: its alignment is {part.alignment}, that of the first file is not")
        tensors += part.tensors
    entries = {k: e for k, e in first.entries.items() if not k.startswith("split.")}
    return Gguf(entries, tensors, paths)


def _split_paths(path: Path, first: Gguf) -> list[Path]:
    n = int(first.value("split.count", 0))
    if n < 2:
        return [path]
    match = re.fullmatch(r"(.*-)00001(-of-\d{5}\.gguf)", path.name)
    if first.value("split.no", 0) != 0 or not match:
        raise ValueError(f"{path}: a file of a split model, name the first one, ...-00001-of-{n:05}.gguf")
    return [path.with_name(f"{match[1]}{i:05}{match[2]}") for i in range(1, n + 1)]


def _read_one(path: Path) -> Gguf:
    try:
        with path.open("rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as data:
            return _parse(path, data)
    except (ValueError, struct.error, MemoryError) as err:
        raise ValueError(f"{path}: not a GGUF file, or cut short: {err}") from None


def _parse(path: Path, data: mmap.mmap) -> Gguf:
    if data[:4] != MAGIC:
        raise ValueError("it begins with other bytes")
    cursor = _Cursor(data, 4)
    version = cursor.number("I")
    if version not in (2, 3):
        raise ValueError(f"version {version}")
    n_tensors, n_entries = cursor.number("Q"), cursor.number("Q")
    entries = {e.key: e for e in (cursor.entry() for _ in range(n_entries))}
    infos = []
    for _ in range(n_tensors):
        name = cursor.bytes()
        shape = tuple(cursor.number("Q") for _ in range(cursor.number("I")))
        infos.append((name, shape, cursor.number("I"), cursor.number("Q")))
    alignment = Gguf(entries, [], []).alignment
    start = _padded(cursor.pos, alignment)
    return Gguf(entries, list(_tensors(path, infos, start, len(data), alignment)), [path])


Info = tuple[bytes, tuple[int, ...], int, int]


def _tensors(path: Path, infos: Sequence[Info], start: int, size: int, alignment: int) -> Iterator[Tensor]:
    """Yield the tensors; each reaches to the next one, so that no type has to be known."""
    offsets = sorted(offset for *_, offset in infos)
    ends = dict(zip(offsets, [*offsets[1:], size - start], strict=False))
    for name, shape, kind, offset in infos:
        span = ends[offset] - offset
        known = _known_size(kind, shape)
        if span < (known or 1):
            raise ValueError(f"tensor {name.decode('utf-8', 'replace')} is not all there")
        yield Tensor(name, shape, kind, path, start + offset, min(span, _padded(known or span, alignment)))


def _known_size(kind: int, shape: tuple[int, ...]) -> int | None:
    n = 1
    for extent in shape:
        n *= extent
    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (KeyError, ValueError):
        return None  # newer than the package gguf
    return n // block * size


def make_entry(key: str, kind: Kind, value: Any) -> Entry:
    """Return an entry for a number or a text."""
    return Entry(key, kind, _encoded(kind, value))


def make_array(key: str, item: Kind, values: Sequence[Any]) -> Entry:
    """Return an entry for a list of numbers or texts."""
    head = struct.pack("<IQ", item, len(values))
    if item == Kind.STRING:
        return Entry(key, Kind.ARRAY, head + b"".join(_encoded(item, v) for v in values))
    return Entry(key, Kind.ARRAY, head + struct.pack(f"<{len(values)}{SCALARS[item]}", *values))


def item_kind(entry: Entry) -> Kind:
    """Return the type of an array's items."""
    return Kind(_Cursor(entry.raw).number("I"))


def _encoded(kind: Kind, value: Any) -> bytes:
    if kind == Kind.STRING:
        text = str(value).encode()
        return struct.pack("<Q", len(text)) + text
    return struct.pack(f"<{SCALARS[kind]}", value)


def n_chunks(tensors: Iterable[Tensor]) -> int:
    """Return the steps that write_gguf() reports."""
    return sum(-(-t.span // CHUNK) for t in tensors)


def write_gguf(
    file: IO[bytes], entries: Iterable[Entry], tensors: Sequence[Tensor], alignment: int, progress: Progress
) -> None:
    """Write a GGUF file; tensors are read where they lie, a few MiB at a time.

    Raises:
        OSError: a file cannot be read or written.
    """
    kept = list(entries)
    head = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(kept)))
    for e in kept:
        head += _encoded(Kind.STRING, e.key) + struct.pack("<I", e.kind) + e.raw
    offset = 0
    for t in tensors:
        head += struct.pack("<Q", len(t.name)) + t.name
        head += struct.pack(f"<I{len(t.shape)}QIQ", len(t.shape), *t.shape, t.type, offset)
        offset += _padded(t.span, alignment)
    file.write(head)
    file.write(bytes(_padded(len(head), alignment) - len(head)))
    for path, group in _by_file(tensors):
        with path.open("rb") as source:
            for t in group:
                _copy(source, file, t, progress)
                file.write(bytes(_padded(t.span, alignment) - t.span))


def _by_file(tensors: Sequence[Tensor]) -> Iterator[tuple[Path, list[Tensor]]]:
    """Yield runs of tensors of one file."""
    run: list[Tensor] = []
    for t in tensors:
        if run and run[-1].path != t.path:
            yield run[0].path, run
            run = []
        run.append(t)
    if run:
        yield run[0].path, run


def _copy(source: IO[bytes], file: IO[bytes], tensor: Tensor, progress: Progress) -> None:
    source.seek(tensor.offset)
    for pos in range(0, tensor.span, CHUNK):
        size = min(CHUNK, tensor.span - pos)
        data = source.read(size)
        if len(data) < size:
            raise OSError(5, f"{tensor.path} became shorter while it was read")
        file.write(data)
        progress.step()


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
