"""Where the tensors of a bypass lie: on the device of the block before its gap. See test_devices.py."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from support.plan_files import Bypass, random_bypass, write_gguf
from support.rpc import Proxy, rpc_device
from support.shared.bypasses import halves
from support.shared.devices import SPLIT_TENSOR
from support.shared.devices import on_devices as on_devices_split

from comparison.builds import Build
from comparison.libllama import Library, Override
from comparison.oracle import ALIGNMENT, expand, logits, skip

N_EMBD, N_LAYER, RANK = 64, 4, 32
TOKENS = [1, 338, 2501, 99, 7, 410, 3, 77, 12]


@pytest.fixture
def devices(ours: Build) -> Iterator[list[Proxy]]:
    with ExitStack() as stack:
        yield [stack.enter_context(rpc_device(ours.tool("ggml-rpc-server"))) for _ in range(2)]


class BuftOverride(ctypes.Structure):
    """struct llama_model_tensor_buft_override"""

    _fields_ = [("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p)]


def on_devices(
    lib: Library,
    endpoints: list[str],
    path: Path,
    overrides: Override,
    *,
    on_host: str = "",
    mask: str | None = None,
    **params: Any,
) -> np.ndarray:
    for endpoint in endpoints:
        lib.add_rpc(endpoint)
    if on_host:
        cpu = ctypes.CDLL(str(lib.folder / "libggml-cpu.so")).ggml_backend_cpu_buffer_type
        cpu.restype = ctypes.c_void_p
        patterns = (BuftOverride * 2)(BuftOverride(on_host.encode(), cpu()), BuftOverride(None, None))
        params["tensor_buft_overrides"] = ctypes.cast(patterns, ctypes.c_void_p)
    params = {"n_gpu_layers": 99, "n_single": 3, "n_ctx": 64, **params}
    found: np.ndarray = logits(lib, path, TOKENS, overrides, mask=(mask, None), **params)
    return found


def linear(gap: int, n_blocks: int = 1, **more: Any) -> Bypass:
    return random_bypass(gap, N_EMBD, RANK, n_blocks=n_blocks, norm_eps=1e-6, **more)


def plan_file(path: Path, model: Path, layers: str, *bypasses: Bypass) -> str:
    return f"@{write_gguf(path, model, layers, list(bypasses), arch='qwen3')}"


def sizes(*bypasses: Bypass) -> dict[str, int]:
    return {name: data.nbytes for bypass in bypasses for name, data in bypass.tensors().items()}


def on_device(device: Proxy) -> dict[str, int]:
    """Bytes set by name, of tensors of gaps."""
    return {name: n for name, n in device.tensors.items() if name.startswith("gap.")}


@pytest.mark.parametrize("type_", [Type.F32, Type.F16, Type.Q8_0], ids=lambda t: t.name)
@pytest.mark.parametrize("as_mask", [False, True])
def test_all_on_a_device(
    ours: Build, tiny: Path, tmp_path: Path, devices: list[Proxy], type_: Type, as_mask: bool
) -> None:
    device, bypass = devices[0], linear(1, 2, type=type_)
    plan = plan_file(tmp_path / "plan.gguf", tiny, "1-2", bypass)
    for name, data in bypass.tensors().items():
        device.needles[name] = data.tobytes()[-64:]
    override, mask = ({}, plan) if as_mask else ({"skip.plan": plan}, None)
    found = ours.worker.fresh(on_devices, [device.endpoint], tiny, override, mask=mask)

    assert on_device(device) == sizes(bypass)
    assert device.found == set(sizes(bypass))
    assert sum(-(-n // ALIGNMENT) * ALIGNMENT for n in sizes(bypass).values()) in device.allocated
    local = ours.worker.call(
        logits, tiny, TOKENS, override, n_single=3, mask=(mask, None), n_ctx=64, use_extra_bufts=False
    )
    assert np.array_equal(found, local)


@pytest.mark.parametrize("n_gpu_layers", [0, 1, 2, 3, 4])
def test_some_blocks_on_a_device(
    ours: Build, tiny: Path, tmp_path: Path, devices: list[Proxy], n_gpu_layers: int
) -> None:
    device = devices[0]
    bypasses = [random_bypass(0, N_EMBD), linear(2)]
    plan = plan_file(tmp_path / "plan.gguf", tiny, "0,2", *bypasses)
    found = ours.worker.fresh(
        on_devices, [device.endpoint], tiny, {"skip.plan": plan}, n_gpu_layers=n_gpu_layers
    )
    # kept are blocks 1 and 3, and the first to go to a device are the output and block 3
    assert device.blocks() == [1, 3][max(3 - n_gpu_layers, 0) :][: max(n_gpu_layers - 1, 0)]
    # embeddings are computed on the host, and so is what follows them
    assert on_device(device) == (sizes(bypasses[1]) if 1 in device.blocks() else {})
    local = ours.worker.call(
        logits, tiny, TOKENS, {"skip.plan": plan}, n_single=3, n_ctx=64, use_extra_bufts=False
    )
    assert np.array_equal(found, local)


@pytest.mark.parametrize("layers", ["1", "2", "3", "1,3", "2-3"])
def test_two_devices(ours: Build, tiny: Path, tmp_path: Path, devices: list[Proxy], layers: str) -> None:
    out = expand(layers)
    gaps = [il for il in out if il - 1 not in out]
    bypasses = [linear(il, 2 if il + 1 in out else 1) for il in gaps]
    plan = plan_file(tmp_path / "plan.gguf", tiny, layers, *bypasses)
    endpoints = [d.endpoint for d in devices]
    found = ours.worker.fresh(on_devices, endpoints, tiny, {"skip.plan": plan}, tensor_split=[1.0, 1.0])
    assert sorted(devices[0].blocks() + devices[1].blocks()) == [il for il in range(N_LAYER) if il not in out]
    for device in devices:
        assert on_device(device) == sizes(*(b for b in bypasses if b.gap - 1 in device.blocks()))
    assert sum(len(on_device(d)) for d in devices) == 4 * len(bypasses)
    local = ours.worker.call(
        logits, tiny, TOKENS, {"skip.plan": plan}, n_single=3, n_ctx=64, use_extra_bufts=False
    )
    assert np.array_equal(found, local)


@pytest.mark.parametrize(
    ("on_host", "moved"),
    [(r"blk\.1\.", True), (r"blk\.1\.ffn", False), (r"blk\.[03]\.", False)],
)
def test_weights_overridden_to_the_host(
    ours: Build, tiny: Path, tmp_path: Path, devices: list[Proxy], on_host: str, moved: bool
) -> None:
    """The stream comes out of a block where its weights are; that a part of them moves is not enough."""
    bypass = linear(2)
    plan = plan_file(tmp_path / "plan.gguf", tiny, "2", bypass)
    found = ours.worker.fresh(
        on_devices, [devices[0].endpoint], tiny, {"skip.plan": plan}, on_host=on_host, use_extra_bufts=False
    )
    ffn = {il for il in (0, 1, 3) if f"blk.{il}.ffn_up.weight" in devices[0].weights()}
    assert ffn == ({1} if "03" in on_host else {0, 3})
    assert on_device(devices[0]) == ({} if moved else sizes(bypass))
    local = ours.worker.call(
        logits, tiny, TOKENS, {"skip.plan": plan}, n_single=3, n_ctx=64, use_extra_bufts=False
    )
    assert np.array_equal(found, local)


def test_split_mode_tensor(
    ours: Build, smollm2: Path, tokens: list[int], tmp_path: Path, devices: list[Proxy]
) -> None:
    """Each of the devices that share every block has the whole bypass, and does what it does to a scale."""
    endpoints = [d.endpoint for d in devices]
    options = {"n_gpu_layers": 99, "split_mode": SPLIT_TENSOR, "flash": "on"}
    expected, _ = ours.worker.fresh(
        on_devices_split, endpoints, smollm2, tokens[:12], skip("13", "0.5"), **options
    )
    for i, bypass in enumerate(halves(13, 576)):
        plan = write_gguf(tmp_path / f"{i}.gguf", smollm2, "13", [bypass])
        found, _ = ours.worker.fresh(
            on_devices_split, endpoints, smollm2, tokens[:12], {"skip.plan": f"@{plan}"}, **options
        )
        assert np.array_equal(found, expected)
        for device in devices:
            assert on_device(device) == sizes(bypass)
            device.tensors.clear()


@pytest.mark.parametrize("n_gpu_layers", [0, 2, 99])
def test_a_dry_run_on_a_device(
    ours: Build,
    devices: list[Proxy],  # outlives the models that are made
    make: Callable[..., Any],
    tiny: Path,
    tmp_path: Path,
    n_gpu_layers: int,
) -> None:
    device, bypass = devices[0], linear(2)
    plan = plan_file(tmp_path / "plan.gguf", tiny, "2", bypass)
    options = {"rpc_servers": device.endpoint, "n_gpu_layers": n_gpu_layers, "use_mmap": False}
    dry = make(tiny, dry_run=True, skip_layers=plan, **options).memory()
    assert on_device(device) == {}
    assert make(tiny, skip_layers=plan, **options).memory() == dry
    place = next(name for name in dry if name != "CPU") if n_gpu_layers == 99 else "CPU"
    without = make(tiny, skip_layers="2", **options).memory()
    assert (dry[place].weights - without[place].weights) * 2**20 == bypass.n_bytes
    # a mask of that plan holds as much
    masked = make(tiny, **options)
    before = masked.memory()[place].weights
    masked.set_mask(plan)
    assert (masked.memory()[place].weights - before) * 2**20 == bypass.n_bytes
