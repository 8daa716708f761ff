"""No operation of a disk block runs on a device that asks for them (op_offload), for large batches either.

The rpc device does not ask; this one, tests/support/offload_device.cpp, is compiled for the test.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.matrix.arch_files import Base, make, write

from comparison.builds import Build
from comparison.libllama import Library, Override
from comparison.oracle import expand
from comparison.stock_build import ROOT

DISK = "1-29+2"


@pytest.fixture(scope="module")
def offload_device(ours: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("c++")
    assert compiler, "a C++ compiler is needed, as for the build"
    ggml = Path(os.environ.get("LLAMA_SKIP_OURS_SOURCE") or ROOT / "vendor" / "llama.cpp") / "ggml"
    library = tmp_path_factory.mktemp("device") / "liboffload.so"
    done = subprocess.run(
        [
            *(compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-o", library),
            ROOT / "tests" / "support" / "offload_device.cpp",
            *(f"-I{ggml / 'include'}", f"-I{ggml / 'src'}"),
            *(f"-L{ours.lib}", "-lggml-cpu", "-lggml", "-lggml-base", f"-Wl,-rpath,{ours.lib}"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return library


def used(
    lib: Library,
    device: Path,
    path: Path,
    tokens: list[int],
    overrides: Override,
    *,
    flash: str = "on",
    **params: Any,
) -> tuple[np.ndarray, list[list[int]], dict[int, tuple[int, int]]]:
    """The logits, the blocks that the device read tensors of in a batch and for a single token, and where the
    nodes of each block ran in the batch.
    """
    c = ctypes.CDLL(str(device))
    c.offload_device_reg.restype = ctypes.c_void_p
    ggml = ctypes.CDLL(str(lib.folder / "libggml.so"))
    ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_register(c.offload_device_reg())
    model = lib.model(path, overrides, use_extra_bufts=False, **params)
    ctx = model.context(flash=flash)
    n_layer = lib.c.llama_model_n_layer(model.p)
    seen = (ctypes.c_uint8 * n_layer)()
    c.offload_device_blocks(seen, n_layer)
    found, blocks = [], []
    nodes: dict[int, tuple[int, int]] = {}
    for batch in (tokens[:40], tokens[40:41]):
        found.append(ctx.decode(batch))
        c.offload_device_blocks(seen, n_layer)
        blocks.append([il for il in range(n_layer) if seen[il]])
        for il in range(n_layer) if len(batch) > 1 else ():
            n_host, n_device = ctypes.c_int32(), ctypes.c_int32()
            if lib.c.llama_skip_disk_nodes(ctx.p, il, ctypes.byref(n_host), ctypes.byref(n_device)):
                nodes[il] = (n_host.value, n_device.value)
    ctx.close()
    model.close()
    return np.concatenate(found), blocks, nodes


def test_a_device_that_asks_gets_no_operation_of_a_disk_block(
    ours: Build, smollm2: Path, tokens: list[int], offload_device: Path
) -> None:
    on_disk, others = expand(DISK), list(range(0, 30, 2))
    # without disk blocks: those that are on the host are copied to the device for the batch
    args = (offload_device, smollm2, tokens)
    whole, (batch, single), _ = ours.worker.fresh(used, *args, {}, n_gpu_layers=16)
    assert batch == list(range(30))
    assert single == list(range(15, 30))

    for scale in ({}, {"skip.disk_scale": "0.5"}):
        overrides = {"skip.disk": DISK, **scale}
        found, (batch, single), nodes = ours.worker.fresh(used, *args, overrides, n_gpu_layers=99)
        assert batch == single == others
        assert sorted(nodes) == list(range(30))
        for il, (n_host, n_device) in nodes.items():
            assert (n_device == 0 and n_host > 15) if il in on_disk else n_device > 15, il
        assert np.array_equal(found, whole) == (not scale)
    # and where the other blocks are on the host as well
    found, (batch, single), _ = ours.worker.fresh(used, *args, {"skip.disk": DISK}, n_gpu_layers=1)
    assert batch == others and single == []
    assert np.array_equal(found, whole)


# a spread of mixers, experts and places where a block ends
SPREAD = [
    *(
        "llama-dense",
        "gemma3-dense",
        "deepseek2-moe",
        "llama-moe",
        "gpt2-dense",
        "bloom-dense",
        "olmo2-dense",
    ),
    *(
        "nemotron_h-dense",
        "qwen3next-moe",
        "mamba2-dense",
        "falcon-h1-dense",
        "rwkv7",
        "lfm2-dense",
        "gpt-oss-moe",
    ),
]


@pytest.mark.parametrize("name", SPREAD)
def test_nodes_of_disk_blocks_of(
    ours: Build, stock: Build, bases: dict[str, Base], offload_device: Path, tmp_path: Path, name: str
) -> None:
    model = make(stock, tmp_path, bases, name)
    path = write(tmp_path / "model.gguf", model.arch, model.metadata, model.tensors)
    tokens = [3 + i * 7 % 50 for i in range(41)]
    n = model.n_layer
    for blocks in (list(range(1, n, 2)), list(range(n))):
        overrides = {"skip.disk": ",".join(map(str, blocks))}
        args = (offload_device, path, tokens, overrides)
        found, used_blocks, nodes = ours.worker.fresh(used, *args, flash="off", n_gpu_layers=99)
        whole = ours.worker.fresh(used, offload_device, path, tokens, {}, flash="off", n_gpu_layers=99)[0]
        assert np.array_equal(found, whole)
        assert all(il not in blocks for seen in used_blocks for il in seen)
        assert any(n_device for il, (_, n_device) in nodes.items() if il not in blocks) == (len(blocks) < n)
        for il in blocks:
            n_host, n_device = nodes[il]
            assert n_device == 0 and n_host > 5, (il, n_host, n_device)
