"""Pages of a file: in this process's memory and in the page cache. The functions run in a Worker, too."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from comparison.oracle import of_blocks

PAGE = mmap.PAGESIZE


def disk_pages(path: Path, blocks: Iterable[int]) -> set[int]:
    """The pages that hold nothing but tensors of these blocks, by their number in the file."""
    runs: list[list[int]] = []
    for t in sorted(of_blocks(path, blocks), key=lambda t: t.offset):
        if runs and t.offset - runs[-1][1] < 32:
            runs[-1][1] = t.end
        else:
            runs.append([t.offset, t.end])
    return {page for first, last in runs for page in range(-(-first // PAGE), last // PAGE)}


def rss_of(path: Path) -> set[int]:
    """The pages of a file that are in this process's memory, checked against Rss in smaps."""
    pages: set[int] = set()
    lines = Path("/proc/self/smaps").read_text().splitlines()
    with open("/proc/self/pagemap", "rb") as pagemap:
        for i, line in enumerate(lines):
            if not line.endswith(str(path.resolve())):
                continue
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            first, n = int(line.split()[2], 16) // PAGE, (end - start) // PAGE
            pagemap.seek(start // PAGE * 8)
            entries = struct.unpack(f"{n}Q", pagemap.read(8 * n))
            present = {first + k for k, entry in enumerate(entries) if entry >> 63}
            rss = next(x for x in lines[i + 1 : i + 12] if x.startswith("Rss:"))
            assert len(present) * PAGE // 1024 == int(rss.split()[1]), line
            pages |= present
    return pages


def cached_pages(path: Path) -> set[int]:
    """The pages of a file that are in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    size = path.stat().st_size
    with open(path, "rb") as file:
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    pages = (ctypes.c_ubyte * (-(-size // PAGE)))()
    done = libc.mincore(address, size, ctypes.addressof(pages))
    libc.munmap(address, size)
    assert done == 0, os.strerror(ctypes.get_errno())
    return {i for i, page in enumerate(pages) if page & 1}
