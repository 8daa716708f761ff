"""Disk blocks: what they compute, what is refused, and what a run-time mask and saved states make of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.disk_oracle import found_rows, scaled_rows
from support.matrix.arch_run import decode

from comparison.builds import Build
from comparison.libllama import Library, LlamaError, Override, override_array
from comparison.oracle import expand, logits, skip

PLAIN = {"use_extra_bufts": False}  # repacked kernels round differently
SETS = ["13-14,25", "0", "29", "1-29+2", "0-29"]


def disk(layers: str, scale: str = "", **more: Any) -> dict[str, Any]:
    return {"skip.disk": layers, **({"skip.disk_scale": scale} if scale else {}), **more}


@pytest.fixture(scope="module")
def full(stock: Build, smollm2: Path, tokens: list[int]) -> Callable[[str], np.ndarray]:
    """The logits of the whole model, by flash attention."""
    found = {
        flash: stock.worker.call(logits, smollm2, tokens, flash=flash, **PLAIN) for flash in ("off", "on")
    }
    return found.__getitem__


@pytest.mark.parametrize("flash", ["off", "on"])
@pytest.mark.parametrize("spec", SETS)
def test_disk_blocks_compute_what_the_whole_model_does(
    ours: Build, smollm2: Path, tokens: list[int], full: Callable[[str], np.ndarray], spec: str, flash: str
) -> None:
    found = ours.worker.call(logits, smollm2, tokens, disk(spec), flash=flash, **PLAIN)
    assert np.array_equal(found, full(flash))


@pytest.mark.parametrize("load_mode", ["none", "mmap", "mlock", "mmap+mlock", "dio"])
def test_disk_blocks_are_the_same_in_every_load_mode(
    ours: Build, smollm2: Path, tokens: list[int], full: Callable[[str], np.ndarray], load_mode: str
) -> None:
    found = ours.worker.call(logits, smollm2, tokens, disk("1-29+2"), load_mode=load_mode, **PLAIN)
    assert np.array_equal(found, full("off"))
    # and beside blocks that are repacked
    assert np.array_equal(
        ours.worker.call(logits, smollm2, tokens, disk("0-29"), load_mode=load_mode), full("off")
    )


@pytest.mark.parametrize("spec", SETS[:-1])
def test_a_scale_of_0_leaves_out(ours: Build, smollm2: Path, tokens: list[int], spec: str) -> None:
    out = ours.worker.call(logits, smollm2, tokens, skip(spec), **PLAIN)
    assert np.array_equal(ours.worker.call(logits, smollm2, tokens, disk(spec, "0"), **PLAIN), out)
    zeros = ",".join(f"{il}:0" for il in expand(spec))
    found = ours.worker.call(logits, smollm2, tokens, disk("0-29", zeros), **PLAIN)
    assert np.array_equal(found, out)


@pytest.mark.parametrize("flash", ["off", "on"])
@pytest.mark.parametrize(
    ("spec", "scale"),
    [
        ("13", "0.5"),
        ("0", "0.5"),
        ("29", "0.75"),
        ("1-29+2", "0.9"),
        ("0-29", "0.95"),
        ("4,7,29", "4:-1.5,29:0.3"),
    ],
)
def test_a_scale_between(stock: Build, ours: Build, smollm2: Path, spec: str, scale: str, flash: str) -> None:
    factors = {il: float(scale) for il in expand(spec)} if ":" not in scale else {}
    factors |= {int(n): float(s) for n, s in (item.split(":") for item in scale.split(",") if ":" in item)}
    expected = stock.worker.call(scaled_rows, smollm2, factors, flash=flash)
    found = ours.worker.call(found_rows, smollm2, disk(spec, scale), flash=flash)
    assert np.array_equal(found, expected)
    assert not np.array_equal(ours.worker.call(found_rows, smollm2, disk(spec), flash=flash), expected)


@pytest.mark.parametrize("spec", ["13-14,28", "13-14,12:attn,15-16:ffn,28:attn", "0:ffn,10:attn,10:ffn"])
def test_a_skip_set_and_disk_blocks_together(
    stock: Build, ours: Build, smollm2: Path, zeroed: Callable[[str], Path], spec: str
) -> None:
    expected = stock.worker.call(scaled_rows, zeroed(spec), {12: 0.5, 15: 1.25})
    found = ours.worker.call(found_rows, smollm2, disk("10-12,15-16", "12:0.5,15:1.25", **skip(spec)))
    assert np.array_equal(found, expected)


REFUSED = [
    ({"skip.disk": "30"}, ["skip.disk", "block 30", "0-29"]),
    ({"skip.disk": "5-3"}, ["skip.disk", "reversed"]),
    ({"skip.disk": "x"}, ["skip.disk", "malformed"]),
    ({"skip.disk": "@name"}, ["skip.disk", "@name"]),
    ({"skip.disk": "4-8", "skip.layers": "8-9"}, ["skip.disk", "8", "left out"]),
    ({"skip.disk": "4", "skip.disk_scale": "nan"}, ["skip.disk_scale", "not finite"]),
    ({"skip.disk": "4", "skip.disk_scale": "1e39"}, ["skip.disk_scale", "not finite"]),
    ({"skip.disk": "4", "skip.disk_scale": "5:0.5"}, ["skip.disk_scale", "block 5", "4"]),
    ({"skip.disk": "4", "skip.disk_scale": "600:0.5"}, ["skip.disk_scale", "block 600", "4"]),
    ({"skip.disk": "4", "skip.disk_scale": "4:1,4:2"}, ["skip.disk_scale", "block 4", "twice"]),
    ({"skip.disk_scale": "0.5"}, ["skip.disk_scale", "no block is on disk"]),
    ({"skip.disk": "none", "skip.disk_scale": "1"}, ["skip.disk_scale", "no block is on disk"]),
    ({"skip.disk": "0-29", "skip.disk_scale": "0"}, ["skip.disk_scale", "every block"]),
    ({"skip.disk": "4", "skip.disk_idle": "-1"}, ["skip.disk_idle", "-1"]),
    ({"skip.disk": "4", "skip.disk_idle": "1e10"}, ["skip.disk_idle", "1e10"]),
    ({"skip.disk_idle": "5"}, ["skip.disk", "no block is on disk"]),
    ({"skip.disk_strict": True}, ["skip.disk", "no block is on disk"]),
    ({"skip.disk": "4", "skip.disk_strict": "yes"}, ["skip.disk_strict", "bool"]),
    ({"skip.disk.1": "4"}, ["skip.disk.1", "continues"]),
    ({"skip.disks": "4"}, ["skip.disks", "unknown"]),
]


def checked(lib: Library, path: Path, overrides: Override) -> str:
    done = lib.c.llama_skip_check_overrides(str(path).encode(), override_array(overrides))
    return "" if done else str(lib.c.llama_skip_error().decode())


def loaded(lib: Library, path: Path, overrides: Override) -> str:
    try:
        lib.model(path, overrides).close()
        return ""
    except LlamaError as err:
        return str(err)


@pytest.mark.parametrize(("overrides", "words"), REFUSED)
def test_refused_before_loading(
    ours: Build, smollm2: Path, overrides: dict[str, Any], words: list[str]
) -> None:
    for said in (ours.worker.call(checked, smollm2, overrides), ours.worker.call(loaded, smollm2, overrides)):
        assert all(word in said for word in words), said
    assert "load_tensors: loading" not in said


def test_a_long_value_continues(ours: Build, smollm2: Path, tokens: list[int]) -> None:
    overrides = {
        "skip.disk": "1,",
        "skip.disk.1": "2",
        "skip.disk_scale": "1:0",
        "skip.disk_scale.1": ".5,2:2",
    }
    found = ours.worker.call(logits, smollm2, tokens, overrides, **PLAIN)
    expected = ours.worker.call(logits, smollm2, tokens, disk("1-2", "1:0.5,2:2"), **PLAIN)
    assert np.array_equal(found, expected)


def told(lib: Library, path: Path, overrides: Override, **params: Any) -> tuple[Any, ...]:
    model = lib.model(path, overrides, **params)
    on_disk = [il for il in range(30) if lib.c.llama_model_is_on_disk(model.p, il)]
    n = lib.c.llama_model_n_on_disk(model.p)
    layers, scale = lib.c.llama_model_disk_layers(model.p), lib.c.llama_model_disk_scale(model.p)
    n_skipped = lib.c.llama_model_n_skipped(model.p)
    model.close()
    return on_disk, n, layers.decode(), scale.decode(), n_skipped, "".join(lib.log)


def test_what_a_model_tells(ours: Build, smollm2: Path) -> None:
    on_disk, n, layers, scale, n_skipped, log = ours.worker.call(told, smollm2, disk("3-5,9", "4:0,9:0.5"))
    assert (on_disk, n, layers, scale, n_skipped) == ([3, 5, 9], 3, "3,5,9", "9:0.5", 1)
    assert "disk: blocks 3,5,9 stay in the file, scale 9:0.5" in log and "skip: blocks 4 left out" in log
    assert "whatever the load mode" not in log
    assert "whatever the load mode" in ours.worker.call(told, smollm2, disk("3"), load_mode="none")[-1]
    assert ours.worker.call(told, smollm2, {})[:5] == ([], 0, "", "", 0)


def masked(lib: Library, path: Path, tokens: list[int], overrides: Override, mask: str) -> np.ndarray:
    model = lib.model(path, overrides, **PLAIN)
    ctx = model.context()
    ctx.mask(mask)
    found = [ctx.decode(tokens[:20]), ctx.decode(tokens[20:21])]
    lib.c.llama_memory_clear(ctx.memory, True)
    ctx.mask(None)
    found.append(ctx.decode(tokens[:20]))
    ctx.close()
    model.close()
    return np.concatenate(found)


def test_a_mask_leaves_disk_blocks_out_and_takes_them_back(
    ours: Build, smollm2: Path, tokens: list[int]
) -> None:
    """With the block masked a scale of it means nothing; a gap beside it has its own."""
    args = (smollm2, tokens)
    for scale in ("", "9:0.5,20:2"):
        found = ours.worker.call(masked, *args, disk("9,13-14,20", scale), "9,13")
        other = {k: v for k, v in {"9:0.5,20:2": "20:2"}.items()}.get(scale, "")
        expected = ours.worker.call(masked, *args, disk("14,20", other), "9,13")
        whole = ours.worker.call(logits, *args, disk("9,13-14,20", scale), **PLAIN)
        assert np.array_equal(found[:21], expected[:21])
        assert np.array_equal(found[21:], whole[:20])


def saved(lib: Library, path: Path, tokens: list[int], overrides: Override, file: Path) -> bytes:
    model = lib.model(path, overrides, **PLAIN)
    ctx = model.context()
    ctx.decode(tokens[:20])
    data = ctx.save("data", file)
    ctx.close()
    model.close()
    return data


def resumed(
    lib: Library, path: Path, tokens: list[int], overrides: Override, data: bytes, file: Path
) -> np.ndarray | str:
    model = lib.model(path, overrides, **PLAIN)
    ctx = model.context()
    done = ctx.restore("data", file, data)
    found = ctx.decode(tokens[20:22], pos=20) if done else "".join(lib.log)
    ctx.close()
    model.close()
    return found


def test_saved_states_carry_the_scales(ours: Build, smollm2: Path, tokens: list[int], tmp_path: Path) -> None:
    args = (smollm2, tokens)
    file = tmp_path / "state"
    whole = ours.worker.call(saved, *args, {}, file)
    assert ours.worker.call(saved, *args, disk("3-9"), file) == whole  # blocks on disk change nothing
    scaled = ours.worker.call(saved, *args, disk("3-9", "0.5"), file)
    assert isinstance(ours.worker.call(resumed, *args, disk("3-9"), whole, file), np.ndarray)
    expected = ours.worker.call(logits, smollm2, tokens[:22], disk("3-9", "0.5"), n_single=0, **PLAIN)[20:]
    found = ours.worker.call(resumed, *args, disk("3-9", "0.5"), scaled, file)
    assert np.allclose(found, expected, atol=1e-2)  # one batch there, two here
    for overrides, data in (({}, scaled), (disk("3-9", "0.25"), scaled), (disk("3-9", "0.5"), whole)):
        said = ours.worker.call(resumed, *args, overrides, data, file)
        assert isinstance(said, str) and "disk scale" in said


def test_a_plan_file_names_disk_blocks(ours: Build, smollm2: Path, tokens: list[int], tmp_path: Path) -> None:
    from llama_skip.files.identity import identify

    ids = identify(smollm2)
    content: dict[str, Any] = {
        "format": "llama-skip-plan",
        "version": 1,
        "model": {"model_id": ids.model_id, "file_id": ids.file_id},
        "skip_layers": "13",
        "disk_layers": "2-8+2",
        "disk_scale": "2:0.5",
    }
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content))
    found = ours.worker.call(logits, smollm2, tokens, {"skip.plan": f"@{path}"}, **PLAIN)
    expected = ours.worker.call(logits, smollm2, tokens, disk("2-8+2", "2:0.5", **skip("13")), **PLAIN)
    assert np.array_equal(found, expected)
    said = ours.worker.call(checked, smollm2, {"skip.plan": f"@{path}", "skip.disk": "4"})
    assert "brings disk blocks of its own" in said
    path.write_text(json.dumps(content | {"disk_layers": "13", "disk_scale": ""}))
    assert "left out" in ours.worker.call(checked, smollm2, {"skip.plan": f"@{path}"})
    path.write_text(json.dumps(content | {"disk_layers": ""}))
    assert "block 2 is not on disk" in ours.worker.call(checked, smollm2, {"skip.plan": f"@{path}"})


def last_rows(lib: Library, path: Path, n: int, overrides: Override) -> np.ndarray:
    """The logits after each 500 of n tokens, in one context."""
    model = lib.model(path, overrides, **PLAIN)
    ctx = model.context(n_ctx=4096)
    tokens = [1 + i * 7919 % 40000 for i in range(n)]
    rows = [decode(ctx, tokens[i : i + 500], i, [499], False)[0] for i in range(0, n, 500)]
    ctx.close()
    model.close()
    return np.stack(rows)


def test_a_long_context(stock: Build, ours: Build, tiny: Path) -> None:
    expected = stock.worker.call(last_rows, tiny, 4000, {})
    for overrides in (disk("1,3"), disk("0-3", **{"skip.disk_strict": True})):
        assert np.array_equal(ours.worker.call(last_rows, tiny, 4000, overrides), expected)
