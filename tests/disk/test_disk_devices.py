"""Disk blocks beside a device: what it is sent and asked to hold, and where their nodes run."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.rpc import Proxy

from comparison.builds import Build
from comparison.libllama import Library, Override
from comparison.oracle import expand, logits, skip, tensors

DISK = "1-29+2"
N_CTX = 512
KV_BYTES_PER_BLOCK = 2 * N_CTX * 192 * 2  # K and V, f16, 3 heads of 64


def disk(layers: str = DISK, **more: Any) -> dict[str, Any]:
    return {"skip.disk": layers, **more}


def run(
    lib: Library, endpoint: str, path: Path, tokens: list[int], overrides: Override, **params: Any
) -> tuple[np.ndarray, str]:
    lib.add_rpc(endpoint)
    found = logits(lib, path, tokens, overrides, n_single=3, n_ctx=N_CTX, **params)
    return found, "".join(lib.log)


def compute_bytes(log: str) -> int:
    """Of the device, as the log of the last context says."""
    return round(float(re.findall(r"RPC0.* compute buffer size = +([\d.]+) MiB", log)[-1]) * 2**20)


def test_a_device_holds_the_other_blocks_and_no_more(
    ours: Build, smollm2: Path, tokens: list[int], device: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    out = expand(DISK)
    data = smollm2.read_bytes()
    for t in tensors(smollm2):
        middle = t.offset + t.size // 2
        device.needles[t.name] = data[middle : middle + 256]
    args = (smollm2, tokens[:40])
    full, full_log = ours.worker.fresh(run, device.endpoint, *args, {}, n_gpu_layers=99)
    kv_of_all = 30 * KV_BYTES_PER_BLOCK
    assert kv_of_all in device.allocated
    device.allocated.clear()
    device.tensors.clear()
    device.found.clear()
    found, log = ours.worker.fresh(run, device.endpoint, *args, disk(), n_gpu_layers=99)

    kept = {t.name: t.size for t in tensors(smollm2) if t.block not in out}
    assert device.weights() == kept
    assert device.found == set(kept)  # also while a batch of 37 tokens and single ones were computed
    assert device.allocated[0] == sum(t.padded for t in tensors(smollm2) if t.block not in out)
    assert 15 * KV_BYTES_PER_BLOCK in device.allocated
    assert kv_of_all not in device.allocated

    batch = 512 * 576 * 4  # one batch of activations
    compute, compute_full = compute_bytes(log), compute_bytes(full_log)
    with capsys.disabled():
        print(f"\ncompute bytes on the device: {compute} of {compute_full} when all blocks are there")
    assert compute <= compute_full + 2 * len(out) * batch
    local = ours.worker.call(logits, smollm2, tokens[:40], n_single=3, use_extra_bufts=False)
    assert np.array_equal(found, local)
    assert np.array_equal(found, full)


@pytest.mark.parametrize("n_gpu_layers", [0, 1, 2, 5, 13, 14, 99])
def test_n_gpu_layers_counts_blocks_that_can_be_on_a_device(
    ours: Build, smollm2: Path, tokens: list[int], device: Proxy, n_gpu_layers: int
) -> None:
    overrides = disk(**skip("4,20"))
    ours.worker.fresh(run, device.endpoint, smollm2, tokens[:8], overrides, n_gpu_layers=n_gpu_layers)
    placed = [il for il in range(0, 30, 2) if il not in (4, 20)]
    n_blocks = max(n_gpu_layers - 1, 0)  # one of them is the output
    assert device.blocks() == placed[max(len(placed) - n_blocks, 0) :]
    assert ("token_embd.weight" in device.weights()) == (n_gpu_layers > 0)


def backends(
    lib: Library, endpoint: str, path: Path, batches: list[list[int]], overrides: Override, flash: str
) -> list[dict[int, tuple[int, int]]]:
    """For each batch the nodes of each block on the host and on a device."""
    lib.add_rpc(endpoint)
    model = lib.model(path, overrides, n_gpu_layers=99)
    ctx = model.context(flash=flash)
    found = []
    for batch in batches:
        ctx.decode(batch)
        n_host, n_device = ctypes.c_int32(), ctypes.c_int32()
        nodes = {}
        for il in range(30):
            known = lib.c.llama_skip_disk_nodes(ctx.p, il, ctypes.byref(n_host), ctypes.byref(n_device))
            if known:
                nodes[il] = (n_host.value, n_device.value)
        found.append(nodes)
    ctx.close()
    model.close()
    return found


@pytest.mark.parametrize("flash", ["off", "on"])
def test_no_node_of_a_disk_block_runs_on_a_device(
    ours: Build, smollm2: Path, tokens: list[int], device: Proxy, flash: str
) -> None:
    batches = [tokens[:40], tokens[40:41]]
    for overrides, gone in ((disk(), []), (disk(**{"skip.disk_scale": "0.5"}), []), (disk(**skip("4")), [4])):
        for nodes in ours.worker.fresh(backends, device.endpoint, smollm2, batches, overrides, flash):
            assert sorted(nodes) == [il for il in range(30) if il not in gone]
            for il, (n_host, n_device) in nodes.items():
                if il in expand(DISK):
                    assert n_device == 0 and n_host > 15, il
                elif il > 0:  # before the first block the embeddings are looked up on the host
                    assert n_device > 15 and n_host == 0, il
