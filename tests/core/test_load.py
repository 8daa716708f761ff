"""What is left out is not read from the file, in any load mode, and never gets resident."""

from __future__ import annotations

import mmap
import os
import resource
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from comparison.builds import Build
from comparison.libllama import Library, Override
from comparison.oracle import TensorInfo, left_out, logits, skip, tensors

SETS = ["13-14,25", "0", "29", "0-29+2", "1-28", "25,13-14:attn,0-20:ffn"]
PAGE = mmap.PAGESIZE


def runs(gone: Iterable[TensorInfo]) -> list[tuple[int, int]]:
    """The byte ranges of tensors of which nothing but padding lies between."""
    merged: list[tuple[int, int]] = []
    for t in sorted(gone, key=lambda t: t.offset):
        if merged and t.offset - merged[-1][1] < 32:
            merged[-1] = (merged[-1][0], t.end)
        else:
            merged.append((t.offset, t.end))
    return merged


def inwards(first: int, last: int, step: int) -> tuple[int, int]:
    return -(-first // step) * step, last // step * step


def bytes_read(lib: Library, path: Path, overrides: Override, load_mode: str) -> int:
    """Bytes this process read with read() and its kind while it loaded a model."""

    def rchar() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = rchar()
    model = lib.model(path, overrides, load_mode=load_mode)
    read = rchar() - before
    model.close()
    assert not any("Falling back" in line for line in lib.log), "".join(lib.log)
    return read


@pytest.mark.parametrize("spec", SETS)
def test_load_mode_none_reads_no_byte_of_what_is_left_out(ours: Build, smollm2: Path, spec: str) -> None:
    full = ours.worker.call(bytes_read, smollm2, {}, "none")
    less = ours.worker.call(bytes_read, smollm2, skip(spec), "none")
    assert full >= sum(t.size for t in tensors(smollm2))
    gone = runs(left_out(smollm2, spec))
    # stdio fills its buffer of 4096 bytes behind a tensor that ends where the next is not read
    assert full - less >= sum(last - first for first, last in gone) - 4096 * len(gone)


@pytest.mark.parametrize("spec", SETS)
def test_load_mode_dio_reads_no_byte_of_what_is_left_out(ours: Build, smollm2: Path, spec: str) -> None:
    full = ours.worker.call(bytes_read, smollm2, {}, "dio")
    less = ours.worker.call(bytes_read, smollm2, skip(spec), "dio")
    step = os.stat(smollm2).st_blksize
    gone = left_out(smollm2, spec)
    kept = [t for t in tensors(smollm2) if t not in gone]
    # each tensor is read from and to a multiple of the block size, what is not a tensor is metadata in both
    aligned = sum(-(-t.end // step) * step - t.offset // step * step for t in gone)
    assert full - less == pytest.approx(aligned, abs=step)
    metadata = tensors(smollm2)[0].offset
    assert less <= metadata + sum(t.size + 2 * step for t in kept) + 2 * step


def resident(path: Path) -> dict[int, bool]:
    """Of each page of a file that this process maps: whether it is resident, by its number in the file."""
    pages: dict[int, bool] = {}
    smaps = Path("/proc/self/smaps").read_text().splitlines()
    with open("/proc/self/pagemap", "rb") as pagemap:
        for header, size, rss in vmas(smaps, str(path)):
            start, end = (int(x, 16) for x in header.split()[0].split("-"))
            first = int(header.split()[2], 16) // PAGE
            pagemap.seek(start // PAGE * 8)
            n = (end - start) // PAGE
            present = [bool(e >> 63) for e in struct.unpack(f"{n}Q", pagemap.read(8 * n))]
            assert size == n * PAGE // 1024
            assert rss == sum(present) * PAGE // 1024, header
            pages.update((first + i, p) for i, p in enumerate(present))
    return pages


def vmas(smaps: list[str], path: str) -> Iterable[tuple[str, int, int]]:
    """Header, Size and Rss in KiB of each mapping of a file."""
    for i, line in enumerate(smaps):
        if line.endswith(path):
            fields = dict(line.split(":", 1) for line in smaps[i + 1 : i + 12])
            yield line, int(fields["Size"].split()[0]), int(fields["Rss"].split()[0])


def resident_after(
    lib: Library, path: Path, tokens: list[int], overrides: Override, load_mode: str
) -> tuple[dict[int, bool], dict[int, bool], int]:
    """Resident pages of the file after load and after 32 more tokens, and the locked KiB."""
    model = lib.model(path, overrides, load_mode=load_mode)
    after_load = resident(path)
    locked = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmLck"))
    ctx = model.context()
    ctx.decode(tokens[:8])
    for t in tokens[8:40]:
        ctx.decode([t])
    after_tokens = resident(path)
    ctx.close()
    model.close()
    return after_load, after_tokens, int(locked.split()[1])


@pytest.mark.parametrize("load_mode", ["mmap", "mmap+mlock"])
@pytest.mark.parametrize("spec", SETS)
def test_with_mmap_what_is_left_out_is_never_resident(
    ours: Build, smollm2: Path, tokens: list[int], spec: str, load_mode: str
) -> None:
    path = smollm2.resolve()
    args = (path, tokens, skip(spec), load_mode)
    after_load, after_tokens, locked = ours.worker.fresh(resident_after, *args)
    gone = left_out(path, spec)
    for pages in (after_load, after_tokens):
        for first, last in runs(gone):
            first, last = inwards(first, last, PAGE)
            assert not any(pages.get(page, False) for page in range(first // PAGE, last // PAGE))
    # what is kept is all there after the load already, as upstream's populated mapping is
    kept = [t for t in tensors(path) if t not in gone]
    for t in kept:
        assert all(after_load[page] for page in range(t.offset // PAGE, -(-t.end // PAGE))), t.name
    if load_mode == "mmap+mlock":
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        n_kept = sum(t.size for t in kept)
        assert locked * 1024 <= n_kept + (2 * len(runs(gone)) + 2) * PAGE + tensors(path)[0].offset
        if limit == resource.RLIM_INFINITY or limit > 2 * n_kept or os.geteuid() == 0:
            assert locked * 1024 >= n_kept


@pytest.mark.parametrize("load_mode", ["none", "mmap", "mlock", "mmap+mlock", "dio"])
def test_every_load_mode_gives_the_same_logits(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int], zeroed: object, load_mode: str
) -> None:
    expected = stock.worker.call(logits, zeroed([13, 14, 25]), tokens[:20], load_mode=load_mode)  # type: ignore[operator]
    found = ours.worker.call(logits, smollm2, tokens[:20], skip("13-14,25"), load_mode=load_mode)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("size", ["40M", "60M"])
def test_split_files(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int], tmp_path: Path, zeroed: object, size: str
) -> None:
    done = stock.run("llama-gguf-split", "--split", "--split-max-size", size, smollm2, tmp_path / "part")
    assert done.returncode == 0, done.stderr
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) >= 2
    # among the sets is one whose blocks fill a part on their own
    for spec in ("13-14,25", "0-12", "1-28", "3,13-20:attn,4-6:ffn"):
        expected = stock.worker.call(logits, zeroed(spec), tokens[:20])  # type: ignore[operator]
        for mode in ("mmap", "none"):
            found = ours.worker.call(logits, parts[0], tokens[:20], skip(spec), load_mode=mode)
            assert np.array_equal(found, expected), (spec, mode)


def test_quantize_does_not_write_the_set_into_a_file(ours: Build, smollm2: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    done = ours.run("llama-quantize", "--override-kv", "skip.layers=str:13-14", smollm2, copy, "COPY")
    assert done.returncode == 0, done.stderr
    assert b"skip.layers" not in copy.read_bytes()
    assert len(tensors(copy)) == len(tensors(smollm2))
