"""The pages of disk blocks: which are in memory, in the process and in the page cache, and when they go."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.disk_pages import cached_pages, disk_pages, rss_of
from support.matrix.arch_files import Base, make, write

from comparison.builds import Build
from comparison.libllama import EVAL_CALLBACK, Library, LlamaError, Override
from comparison.oracle import expand, logits, of_blocks, tensors

PLAIN = {"use_extra_bufts": False}
DISK = "1-29+2"
PAGE = mmap.PAGESIZE


@pytest.fixture
def copy(smollm2: Path, tmp_path: Path) -> Path:
    """A file that no other process maps."""
    path = tmp_path / "copy.gguf"
    shutil.copyfile(smollm2, path)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    return path


def disk(layers: str = DISK, **more: Any) -> dict[str, Any]:
    return {"skip.disk": layers, **more}


def pages_at_each_step(
    lib: Library, path: Path, tokens: list[int], overrides: Override, load_mode: str
) -> dict[str, Any]:
    """Of the pages of disk blocks: how many are in memory, of how many; what the library says of both."""
    on_disk = disk_pages(path, expand(DISK))
    kept = disk_pages(path, [il for il in range(30) if il not in expand(DISK)])
    found: dict[str, Any] = {"n": len(on_disk), "n_kept": len(kept)}

    def note(step: str) -> None:
        found[step] = len(rss_of(path) & on_disk)
        found[f"{step} kept"] = len(rss_of(path) & kept)
        found[f"{step} told"] = lib.c.llama_skip_disk_resident(model.p) // PAGE

    model = lib.model(path, overrides, load_mode=load_mode, **PLAIN)
    note("loaded")
    found["mapped"] = lib.c.llama_skip_disk_mapped(model.p)
    ctx = model.context()
    first = ctx.decode(tokens[:16])
    note("decoded")
    lib.c.llama_skip_standby(model.p)
    note("standby")
    found["cached"] = len(cached_pages(path) & on_disk)
    found["log"] = "".join(lib.log)
    lib.c.llama_memory_clear(ctx.memory, True)
    found["same"] = np.array_equal(ctx.decode(tokens[:16]), first)
    note("again")
    locked = Path("/proc/self/status").read_text().partition("VmLck:")[2].split()[0]
    found["locked"] = int(locked) * 1024
    ctx.close()
    model.close()
    return found


@pytest.mark.parametrize("load_mode", ["mmap", "mmap+mlock", "none", "dio"])
def test_standby_hands_all_pages_back(ours: Build, copy: Path, tokens: list[int], load_mode: str) -> None:
    before = copy.stat()
    found = ours.worker.fresh(pages_at_each_step, copy, tokens, disk(), load_mode)
    sizes = sum(t.size for t in of_blocks(copy, expand(DISK)))
    assert found["mapped"] == pytest.approx(sizes, rel=0.001) and found["mapped"] >= sizes
    assert found["loaded"] == found["loaded told"] == 0
    assert found["decoded"] == found["decoded told"] == found["n"]
    assert found["standby"] == found["standby told"] == 0
    # a folio at an end that locked pages have a part in stays
    assert found["cached"] <= (0.03 * found["n"] if "mlock" in load_mode else 0)
    assert found["same"] and found["again"] == found["n"]
    if "mmap" in load_mode:
        # the other blocks stay where they are, but for pages of the folios at the ends
        assert found["loaded kept"] == found["n_kept"]
        assert found["standby kept"] >= 0.95 * found["n_kept"]
    if "mlock" in load_mode and os.geteuid() == 0:
        kept = sum(t.size for t in tensors(copy) if t.block not in expand(DISK))
        assert kept * 0.99 <= found["locked"] <= copy.stat().st_size - sizes * 0.99
    after = copy.stat()
    assert (before.st_mtime_ns, before.st_size, before.st_ino) == (
        after.st_mtime_ns,
        after.st_size,
        after.st_ino,
    )


def highest(lib: Library, path: Path, tokens: list[int], overrides: Override, n: int) -> tuple[int, int]:
    """The most bytes of disk blocks in memory while n tokens are generated, and after a standby.

    Counted in the middle and at the end of each block, while the scheduler waits: nothing goes meanwhile.
    """
    seen: list[int] = []

    def count(tensor: Any, ask: bool, _: Any) -> bool:
        if ask:
            return tensor.contents.name.decode().partition("-")[0] in ("ffn_inp", "l_out")
        seen.append(lib.c.llama_skip_disk_resident(model.p))
        return True

    callback = EVAL_CALLBACK(count)
    model = lib.model(path, overrides, **PLAIN)
    ctx = model.context(n_ctx=1024, cb_eval=ctypes.cast(callback, ctypes.c_void_p))
    token = int(ctx.decode(tokens[:8])[-1].argmax())
    for _ in range(n):
        token = int(ctx.decode([token])[0].argmax())
    assert len(seen) == (n + 1) * 60
    lib.c.llama_skip_standby(model.p)
    after = lib.c.llama_skip_disk_resident(model.p)
    ctx.close()
    model.close()
    return max(seen), after


@pytest.mark.parametrize("layers", ["0-29", DISK])
def test_strict_mode_holds_less_than_two_blocks(
    ours: Build, copy: Path, tokens: list[int], layers: str
) -> None:
    n = 500 if layers == "0-29" else 50
    block = sum(t.size for t in of_blocks(copy, [1]))
    most, after = ours.worker.fresh(highest, copy, tokens, disk(layers, **{"skip.disk_strict": True}), n)
    assert block / 2 < most < 2 * block
    assert after == 0
    loose, _ = ours.worker.fresh(highest, copy, tokens, disk(layers), 4)
    assert loose > 14 * block


def test_strict_mode_computes_the_same(ours: Build, smollm2: Path, tokens: list[int]) -> None:
    expected = ours.worker.call(logits, smollm2, tokens, **PLAIN)
    overrides = disk("0-29", **{"skip.disk_strict": True})
    assert np.array_equal(ours.worker.call(logits, smollm2, tokens, overrides, **PLAIN), expected)


def brought_in_ahead(lib: Library, path: Path, tokens: list[int], overrides: Override) -> dict[int, float]:
    """After a standby: the share of each disk block's pages in memory just before it runs.

    The scheduler is held up at the end of the blocks in front, which leaves the time that a disk needs.
    """
    pages = {il: disk_pages(path, [il]) for il in expand(DISK)}
    shares: dict[int, float] = {}

    def hold(tensor: Any, ask: bool, _: Any) -> bool:
        name, _, number = tensor.contents.name.decode().partition("-")
        if not ask and name == "l_out" and number.isdigit() and int(number) + 1 in pages:
            il = int(number) + 1
            time.sleep(0.2)
            shares[il] = len(pages[il] & rss_of(path)) / len(pages[il])
        return True if not ask else name == "l_out"

    callback = EVAL_CALLBACK(hold)
    model = lib.model(path, overrides, **PLAIN)
    ctx = model.context(cb_eval=ctypes.cast(callback, ctypes.c_void_p))
    ctx.decode(tokens[:4])
    lib.c.llama_skip_standby(model.p)
    shares.clear()
    ctx.decode(tokens[4:5])
    ctx.close()
    model.close()
    return shares


@pytest.mark.parametrize("strict", [False, True])
def test_pages_come_in_ahead(ours: Build, copy: Path, tokens: list[int], strict: bool) -> None:
    overrides = disk(**({"skip.disk_strict": True} if strict else {}))
    found = ours.worker.fresh(brought_in_ahead, copy, tokens, overrides)
    assert sorted(found) == expand(DISK)
    assert min(found.values()) > (0.7 if strict else 0.99), found


def after_idle_time(lib: Library, path: Path, tokens: list[int], overrides: Override) -> list[int]:
    """Bytes in memory after a decode, while work goes on for twice the idle time, and after a pause."""
    model = lib.model(path, overrides, **PLAIN)
    ctx = model.context()
    ctx.decode(tokens[:4])
    found = [lib.c.llama_skip_disk_resident(model.p)]
    busy = time.monotonic() + 4
    while time.monotonic() < busy:
        lib.c.llama_memory_clear(ctx.memory, True)
        ctx.decode(tokens[:4])
    found.append(lib.c.llama_skip_disk_resident(model.p))
    deadline = time.monotonic() + 30
    while lib.c.llama_skip_disk_resident(model.p) and time.monotonic() < deadline:
        time.sleep(0.1)
    found.append(lib.c.llama_skip_disk_resident(model.p))
    ctx.decode(tokens[4:5])
    found.append(lib.c.llama_skip_disk_resident(model.p))
    ctx.close()
    model.close()
    return found


def test_idle_time_hands_pages_back(ours: Build, copy: Path, tokens: list[int]) -> None:
    first, busy, idle, again = ours.worker.fresh(after_idle_time, copy, tokens, disk(**{"skip.disk_idle": 2}))
    assert first == busy == again > 0
    assert idle == 0


def after_a_long_node(lib: Library, path: Path, tokens: list[int], standby: bool) -> list[int]:
    """Bytes in memory after a decode that took longer than the idle time, and after a pause."""
    model = lib.model(path, disk(**{"skip.disk_idle": 1}), **PLAIN)
    waited = False

    @EVAL_CALLBACK
    def wait(tensor: Any, ask: bool, _: Any) -> bool:
        nonlocal waited
        if ask:
            return True
        if not waited and tensor.contents.name.startswith(b"l_out-20"):
            waited = True
            time.sleep(3)
            if standby:
                lib.c.llama_skip_standby(model.p)
        return True

    ctx = model.context(cb_eval=ctypes.cast(wait, ctypes.c_void_p))
    ctx.decode(tokens[:4])
    assert waited
    found = [lib.c.llama_skip_disk_resident(model.p)]
    deadline = time.monotonic() + 30
    while lib.c.llama_skip_disk_resident(model.p) and time.monotonic() < deadline:
        time.sleep(0.1)
    found.append(lib.c.llama_skip_disk_resident(model.p))
    ctx.close()
    model.close()
    return found


@pytest.mark.parametrize("standby", [False, True])
def test_idle_time_does_not_pass_while_work_is_done(
    ours: Build, smollm2: Path, tokens: list[int], standby: bool
) -> None:
    size = sum(t.size for t in of_blocks(smollm2, expand(DISK)))
    busy, idle = ours.worker.fresh(after_a_long_node, smollm2, tokens, standby)
    assert idle == 0  # what came back after a standby goes again, too
    assert busy > 0 if standby else busy == pytest.approx(size, rel=0.01)


def after_change(lib: Library, path: Path, tokens: list[int], change: str) -> tuple[str, str]:
    """What a decode says after a change to the file, and after it was undone where it can be."""
    model = lib.model(path, disk(), **PLAIN)
    ctx = model.context()
    ctx.decode(tokens[:4])
    other = path.with_suffix(".other")
    if change == "replaced":
        shutil.copyfile(path, other)
        other.replace(path)
    elif change == "removed":
        path.rename(other)
    elif change == "written":
        os.utime(path, ns=(0, 1))
    else:
        with path.open("ab") as file:
            file.write(b"x")
    said = []
    for undo in (False, True):
        if undo and change == "removed":
            other.rename(path)
        lib.log.clear()
        try:
            ctx.decode(tokens[4:5])
            said.append("")
        except LlamaError as err:
            said.append(str(err))
    ctx.close()
    model.close()
    return said[0], said[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("replaced", "was replaced"),
        ("removed", "was removed"),
        ("written", "was written to"),
        ("longer", "changed its size"),
    ],
)
def test_a_change_of_the_file_is_an_error(
    ours: Build, copy: Path, tokens: list[int], change: str, words: str
) -> None:
    said, after = ours.worker.fresh(after_change, copy, tokens, change)
    assert words in said and str(copy) in said and "load the model again" in said
    assert (after == "") == (change == "removed")


def with_a_failed_decode(lib: Library, path: Path, tokens: list[int], fails: bool) -> np.ndarray:
    """The logits of two tokens, which were decoded once before while the file was not there."""
    model = lib.model(path, disk("0-1"), **PLAIN)
    ctx = model.context()
    ctx.decode(tokens[:4])
    if fails:
        other = path.with_suffix(".other")
        path.rename(other)
        with pytest.raises(LlamaError):
            ctx.decode(tokens[4:6])
        other.rename(path)
    found = ctx.decode(tokens[4:6])
    ctx.close()
    model.close()
    return found


@pytest.mark.parametrize("name", ["llama-dense", "mamba2-dense", "lfm2-dense", "qwen3next-moe"])
def test_a_decode_that_fails_leaves_the_state_alone(
    ours: Build, stock: Build, bases: dict[str, Base], tmp_path: Path, name: str
) -> None:
    model = make(stock, tmp_path, bases, name)
    path = write(tmp_path / "model.gguf", model.arch, model.metadata, model.tensors)
    tokens = [3 + i * 7 % 50 for i in range(6)]
    expected, found = (
        ours.worker.fresh(with_a_failed_decode, path, tokens, fails) for fails in (False, True)
    )
    assert np.array_equal(found, expected)
