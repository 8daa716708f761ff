"""What of the host's memory this process holds, from /proc, and what of a file the page cache does."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llama_skip.errors import MIB
from llama_skip.files.gguf import read_gguf
from llama_skip.files.store import StrPath

SMAPS = Path("/proc/self/smaps")
PIECE = 8 * MIB  # bytes of one read()
PAUSE = 0.005  # seconds between two looks at the memory


@dataclass(frozen=True)
class HostMemory:
    """Memory of this process on the host, in MiB.

    Attributes:
        mapped_rss: pages of the model's files that are mapped into the process and in memory (Rss).
        mapped_pss: the same, each page divided by the number of processes that map it (Pss).
        allocated: all memory that no file stands behind (Anonymous): repacked and copied weights, KV cache,
            compute buffers, the vocabulary, and what Python has.
    """

    mapped_rss: float
    mapped_pss: float
    allocated: float


@dataclass(frozen=True)
class Range:
    """Bytes of a file from `first` to before `last`."""

    path: Path
    first: int
    last: int


def host_memory(files: Iterable[StrPath]) -> HostMemory | None:
    """Return what this process holds, None where the system has no /proc/self/smaps.

    Args:
        files: those of the model.
    """
    try:
        lines = SMAPS.read_text(errors="replace").splitlines()
    except OSError:
        return None
    names = {os.path.realpath(file) for file in files}
    rss = pss = allocated = 0
    is_model = False
    for line in lines:
        name, _, rest = line.partition(":")
        if name == "Anonymous":
            allocated += _kib(rest)
        elif name == "Rss" and is_model:
            rss += _kib(rest)
        elif name == "Pss" and is_model:
            pss += _kib(rest)
        elif re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_model = line.split(maxsplit=5)[-1] in names
    return HostMemory(rss / 1024, pss / 1024, allocated / 1024)


def _kib(text: str) -> int:
    return int(text.split()[0])


@contextmanager
def highest(files: Sequence[StrPath]) -> Iterator[list[HostMemory]]:
    """Yield a list that has, when the block ends, the most of each kind that was seen meanwhile.

    It is empty where the system does not tell.
    """
    found: list[HostMemory] = []
    seen: list[HostMemory] = []
    ended = threading.Event()

    def look() -> None:
        while (now := host_memory(files)) is not None:
            seen.append(now)
            if ended.wait(PAUSE):
                break

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()
    if seen:
        found.append(
            HostMemory(
                max(m.mapped_rss for m in seen),
                max(m.mapped_pss for m in seen),
                max(m.allocated for m in seen),
            )
        )


def block_ranges(model: StrPath, blocks: Iterable[int]) -> list[Range]:
    """Return where the tensors of blocks are in a model's files, in order, joined where nothing is between.

    Raises:
        OSError: a file cannot be read.
        ValueError: not a GGUF file.
    """
    wanted = set(blocks)
    found: list[Range] = []
    for t in sorted(read_gguf(model).tensors, key=lambda t: (t.path, t.offset)):
        block = re.match(rb"blk\.(\d+)\.", t.name)
        if block is None or int(block[1]) not in wanted:
            continue
        if found and found[-1].path == t.path and found[-1].last == t.offset:
            found[-1] = Range(t.path, found[-1].first, t.offset + t.span)
        else:
            found.append(Range(t.path, t.offset, t.offset + t.span))
    return found


def read_in_order(ranges: Sequence[Range]) -> float:
    """Return the MiB per second at which read() brings these bytes in, in large pieces, one after another."""
    buffer = memoryview(mmap.mmap(-1, PIECE))
    n_bytes, elapsed = 0, 0.0
    for path in dict.fromkeys(r.path for r in ranges):
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            start = time.perf_counter()
            for r in (r for r in ranges if r.path == path):
                file.seek(r.first)
                for at in range(r.first, r.last, PIECE):
                    n_bytes += file.readinto(buffer[: min(PIECE, r.last - at)]) or 0
            elapsed += time.perf_counter() - start
    return n_bytes / MIB / elapsed


def cached(ranges: Sequence[Range]) -> float:
    """Return how many MiB of these bytes are in the page cache, as mincore() says.

    It says all of them where this user could not write to the file.

    Raises:
        OSError: the system has no mincore(), or it fails.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    n_pages = 0
    for r in ranges:
        # pages that the range has alone
        first, last = -(-r.first // mmap.PAGESIZE), r.last // mmap.PAGESIZE
        if first >= last:
            continue
        size = (last - first) * mmap.PAGESIZE
        with r.path.open("rb") as file:
            address = libc.mmap(
                None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), first * mmap.PAGESIZE
            )
        pages = (ctypes.c_ubyte * (last - first))()
        failed = libc.mincore(address, size, ctypes.addressof(pages))
        error = ctypes.get_errno()
        libc.munmap(address, size)
        if failed:
            raise OSError(error, os.strerror(error), str(r.path))
        n_pages += sum(page & 1 for page in pages)
    return n_pages * mmap.PAGESIZE / MIB
