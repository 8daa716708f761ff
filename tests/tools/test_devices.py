"""What a device is sent and asked to hold. An rpc server on the CPU counts as a GPU for llama.cpp."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.rpc import Proxy, rpc_device
from support.shared.devices import N_CTX, on_devices, with_experts

from comparison.builds import Build
from comparison.libllama import Library, Override
from comparison.oracle import TensorInfo, expand, left_out, logits, skip, tensors

OUT = "3,13-14,25"
HALVES = "25,3-14:attn,0-9:ffn"
KV_BYTES_PER_BLOCK = 2 * N_CTX * 192 * 2  # K and V, f16, 3 heads of 64


@pytest.fixture
def two_devices(ours: Build) -> Iterator[list[Proxy]]:
    with ExitStack() as stack:
        yield [stack.enter_context(rpc_device(ours.tool("ggml-rpc-server"))) for _ in range(2)]


def kept(path: Path, spec: str) -> list[TensorInfo]:
    """What is on the device at -ngl 99: the token embeddings are there once, as the output."""
    gone = left_out(path, spec)
    return [t for t in tensors(path) if t not in gone]


def n_caches(spec: str) -> int:
    return 30 - len({*expand(spec), *expand(spec, "attn")})


@pytest.mark.parametrize("spec", [OUT, HALVES])
def test_only_what_is_kept_reaches_the_device(
    ours: Build, smollm2: Path, tokens: list[int], device: Proxy, spec: str
) -> None:
    # bytes from the middle of every tensor: they are found in what is sent exactly for those that are kept
    data = smollm2.read_bytes()
    for t in tensors(smollm2):
        middle = t.offset + t.size // 2
        device.needles[t.name] = data[middle : middle + 256]

    found, log = ours.worker.fresh(
        on_devices, [device.endpoint], smollm2, tokens[:20], skip(spec), n_gpu_layers=99
    )

    on_device = kept(smollm2, spec)
    assert device.weights() == {t.name: t.size for t in on_device}
    assert device.found == {t.name for t in on_device}
    assert device.blocks() == [il for il in range(30) if il not in expand(spec)]

    padded = sum(t.padded for t in on_device)
    assert device.allocated[0] == padded
    assert f"model buffer size = {padded / 2**20:8.2f} MiB" in log
    assert n_caches(spec) * KV_BYTES_PER_BLOCK in device.allocated
    assert 30 * KV_BYTES_PER_BLOCK not in device.allocated

    local = ours.worker.call(logits, smollm2, tokens[:20], skip(spec), n_single=3, use_extra_bufts=False)
    assert np.array_equal(found, local)


@pytest.mark.parametrize("spec", [OUT, HALVES])
def test_kv_cache_and_weights_shrink_by_the_skipped_share(
    ours: Build, smollm2: Path, tokens: list[int], device: Proxy, spec: str
) -> None:
    def run(overrides: Override) -> tuple[list[int], int]:
        device.allocated.clear()
        device.sent = 0
        ours.worker.fresh(on_devices, [device.endpoint], smollm2, tokens[:8], overrides, n_gpu_layers=99)
        return list(device.allocated), device.sent

    full, sent_full = run({})
    less, sent_less = run(skip(spec))
    gone = left_out(smollm2, spec)
    assert full[0] - less[0] == sum(t.padded for t in gone)
    assert full[1] - less[1] == (30 - n_caches(spec)) * KV_BYTES_PER_BLOCK
    assert full[1] == 30 * KV_BYTES_PER_BLOCK
    # what is not weights only gets less: fewer tensors to announce, smaller graphs
    assert sent_full - sent_less >= sum(t.size for t in gone)


@pytest.mark.parametrize("spec", ["0-9", "13-14,25", "20-29", HALVES])
def test_two_devices_share_the_kept_blocks(
    ours: Build, smollm2: Path, tokens: list[int], two_devices: list[Proxy], spec: str
) -> None:
    kept = [il for il in range(30) if il not in expand(spec)]
    found, _ = ours.worker.fresh(
        on_devices,
        [d.endpoint for d in two_devices],
        smollm2,
        tokens[:20],
        skip(spec),
        n_gpu_layers=99,
        tensor_split=[1.0, 1.0],
    )
    first, second = (d.blocks() for d in two_devices)
    assert first + second == kept
    # the output counts as one more block, of the second device
    assert abs(len(first) - len(second) - 1) <= 1
    assert "token_embd.weight" in two_devices[1].weights()
    local = ours.worker.call(logits, smollm2, tokens[:20], skip(spec), n_single=3, use_extra_bufts=False)
    assert np.array_equal(found, local)


@pytest.mark.parametrize("n_gpu_layers", [0, 1, 2, 5, 26, 27, 28])
@pytest.mark.parametrize("spec", ["13-14,25", "0,28-29", "0,20-25:attn,28:ffn"])
def test_n_gpu_layers_counts_kept_blocks(
    ours: Build, smollm2: Path, device: Proxy, n_gpu_layers: int, spec: str
) -> None:
    ours.worker.fresh(
        on_devices, [device.endpoint], smollm2, [1, 2, 3, 4], skip(spec), n_gpu_layers=n_gpu_layers
    )
    kept = [il for il in range(30) if il not in expand(spec)]
    n_blocks = max(n_gpu_layers - 1, 0)  # one of them is the output
    assert device.blocks() == kept[len(kept) - n_blocks :]
    assert ("token_embd.weight" in device.weights()) == (n_gpu_layers > 0)


def maps_while_loading(lib: Library, endpoint: str, path: Path, overrides: Override) -> bool:
    """Map memory at every step of a load to a device; whether it is all still there afterwards."""
    lib.add_rpc(endpoint)
    mapped: list[mmap.mmap] = []

    def step(progress: float, _: Any) -> bool:
        mapped.append(mmap.mmap(-1, 4 << 20))
        mapped[-1].write(b"x")
        return True

    model = lib.model(path, overrides, n_gpu_layers=99, load_mode="mmap", progress_callback=step)
    intact = all(m[0] == ord("x") for m in mapped)
    model.close()
    return len(mapped) > 10 and intact and all(m[0] == ord("x") for m in mapped)


def test_the_hole_in_the_mapping_does_not_take_others_memory_along(
    ours: Build, smollm2: Path, device: Proxy
) -> None:
    """Upstream unmaps the file when all is on a device: by then other things may lie where a hole was."""
    assert ours.worker.fresh(maps_while_loading, device.endpoint, smollm2, skip("1-28"))


def test_override_tensor_patterns_name_blocks_of_the_file(ours: Build, smollm2: Path, device: Proxy) -> None:
    pattern = r"blk\.(20|26)\.=CPU,blk\.5\.ffn_down=CPU"
    args = ("--skip-layers", OUT, "--no-repack")
    text = ours.complete(
        smollm2, *args, "--rpc", device.endpoint, "-ngl", 99, "-fit", "off", "-ot", pattern
    ).stdout
    kept = {t.name for t in tensors(smollm2) if t.block not in (*expand(OUT), 20, 26)}
    assert set(device.weights()) == kept - {"blk.5.ffn_down.weight"}
    assert text == ours.complete(smollm2, *args, "-fit", "off").stdout


def fit_twice(
    stock: Build, ours: Build, model: Path, device: Proxy, tmp_path: Path
) -> tuple[dict[str, int], dict[str, int], int]:
    """What --fit puts on the device: of a pruned file, named as in the whole one, and of the set."""
    pruned = tmp_path / "pruned.gguf"
    out = expand(OUT)
    done = stock.run("llama-quantize", "--prune-layers", ",".join(map(str, out)), model, pruned, "COPY")
    assert done.returncode == 0, done.stderr
    args = ("--rpc", device.endpoint, "--fit-target", FIT_MARGIN, "--no-repack")
    expected_text = stock.complete(pruned, *args).stdout
    expected = device.weights()
    device.tensors.clear()
    assert ours.complete(model, *args, "--skip-layers", OUT).stdout == expected_text

    kept = [il for il in range(30) if il not in out]

    def in_file(name: str) -> str:
        head, il, *rest = name.split(".")
        return ".".join([head, str(kept[int(il)]), *rest]) if head == "blk" else name

    n_kept = len([t for t in tensors(model) if t.block not in out])
    return {in_file(name): size for name, size in expected.items()}, device.weights(), n_kept


FIT_MARGIN = 1024  # MiB; the proxy says how much more than that is free


@pytest.mark.parametrize("free_mib", [131, 146, 162])
def test_fit_places_the_blocks_that_it_places_of_a_pruned_file(
    stock: Build, ours: Build, smollm2: Path, device: Proxy, tmp_path: Path, free_mib: int
) -> None:
    device.free_memory = (free_mib + FIT_MARGIN) << 20
    expected, found, n_kept = fit_twice(stock, ours, smollm2, device, tmp_path)
    assert 0 < len(expected) < n_kept
    assert found == expected


@pytest.mark.parametrize("free_mib", [152, 170])
def test_fit_overrides_the_tensors_of_the_right_blocks(
    stock: Build, ours: Build, smollm2: Path, device: Proxy, tmp_path: Path, free_mib: int
) -> None:
    """Experts stay on the host by patterns that name a block; again the pruned file shows which."""
    device.free_memory = (free_mib + FIT_MARGIN) << 20
    model = with_experts(smollm2, tmp_path / "experts.gguf")
    expected, found, n_kept = fit_twice(stock, ours, model, device, tmp_path)
    assert 0 < len(expected) < n_kept
    with_attention = {name.split(".")[1] for name in expected if ".attn_q." in name}
    with_experts_too = {name.split(".")[1] for name in expected if ".ffn_down_exps." in name}
    assert with_experts_too < with_attention
    assert found == expected
