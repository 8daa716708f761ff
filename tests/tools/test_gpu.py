"""On a real GPU, where there is one: nothing of what is left out or on disk is there; the rest is right."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from llama_skip import _core
from llama_skip.measure.divergence import kl_divergence
from support.plan_files import random_bypass, write_gguf

from comparison.builds import Build
from comparison.libllama import Library
from comparison.oracle import expand, of_blocks

GPUS = [d for d in _core.devices() if d.type == "gpu" and d.backend != "RPC"]
pytestmark = pytest.mark.skipif(not GPUS, reason="no GPU, or a build without its back-end")

TEXT = (
    b"The old man was thin and gaunt with deep wrinkles in the back of his neck. The brown blotches of the "
    b"sun were on his cheeks, and his hands had the deep creased scars from handling heavy fish on the cords."
)
SKIP = "10-20"
DISK = "1-29+2"
ON_GPU = {"n_gpu_layers": 99, "devices": [GPUS[0].name] if GPUS else None, "n_ctx": 512}


@pytest.fixture
def near(make: Callable[..., Any]) -> float:
    """How far the whole model on the GPU is from the host: a bound of the KL divergence, nats per token."""
    device, host = make(**ON_GPU), make(n_gpu_layers=0, devices=[])
    tokens = device.tokenize(TEXT)
    return 4 * float(kl_divergence(device.logits(tokens), host.logits(tokens)).mean())


def on_gpu(llm: Any) -> float:
    """MiB of weights on the GPU."""
    return float(sum(m.weights for name, m in llm.memory().items() if name == GPUS[0].name))


def kld(llm: Any, other: Any) -> float:
    tokens = llm.tokenize(TEXT)
    return float(kl_divergence(llm.logits(tokens), other.logits(tokens)).mean())


def test_skipped_blocks_are_not_on_the_gpu(
    make: Callable[..., Any], smollm2: Path, zeroed: Callable[[list[int]], Path], near: float
) -> None:
    whole, left_out = make(**ON_GPU), make(**ON_GPU, skip_layers=SKIP)
    mib = sum(t.size for t in of_blocks(smollm2, expand(SKIP))) / 2**20
    assert on_gpu(whole) - on_gpu(left_out) == pytest.approx(mib, rel=0.01)
    caches = [llm.memory()[GPUS[0].name].kv for llm in (left_out, whole)]
    assert caches[0] == pytest.approx(caches[1] * (30 - len(expand(SKIP))) / 30, rel=0.01)

    assert kld(left_out, make(n_gpu_layers=0, devices=[], skip_layers=SKIP)) <= near
    # the same operations on the same device, but for blocks that add zeros
    tokens = whole.tokenize(TEXT)
    identities = make(zeroed(expand(SKIP)), **ON_GPU)
    assert np.array_equal(left_out.logits(tokens), identities.logits(tokens))
    whole.set_mask(SKIP)
    assert np.array_equal(whole.logits(tokens), left_out.logits(tokens))


@pytest.mark.parametrize("type_", [Type.F32, Type.F16, Type.Q8_0], ids=lambda t: t.name)
@pytest.mark.parametrize("n_gpu_layers", [99, 16, 0])
def test_a_bypass_on_the_gpu(
    make: Callable[..., Any], smollm2: Path, tmp_path: Path, near: float, type_: Type, n_gpu_layers: int
) -> None:
    """With blocks on the host a batch this long is copied to the GPU; the bypass has to go along, or not."""
    random = [
        random_bypass(il, 576, 64, n_blocks=n, norm_eps=1e-5, type=type_, parts="auv")
        for il, n in ((5, 1), (10, 3), (25, 1))
    ]
    bypasses = [replace(bypass, u=0.05 * bypass.u) for bypass in random]
    plan = f"@{write_gguf(tmp_path / 'plan.gguf', smollm2, '5,10-12,25', bypasses)}"
    device = make(**{**ON_GPU, "n_gpu_layers": n_gpu_layers}, skip_layers=plan)
    host = make(n_gpu_layers=0, devices=[], skip_layers=plan)
    assert kld(device, host) <= near + 1e-3
    plain = make(n_gpu_layers=0, devices=[], skip_layers="5,10-12,25")
    assert kld(plain, host) > 10 * near  # it does something
    masked = make(**{**ON_GPU, "n_gpu_layers": n_gpu_layers})
    masked.set_mask(plan)
    assert kld(masked, host) <= near + 1e-3
    if n_gpu_layers == 99:
        mib = sum(b.n_bytes for b in bypasses) / 2**20
        without = on_gpu(make(**ON_GPU, skip_layers="5,10-12,25"))
        assert on_gpu(device) - without == pytest.approx(mib, rel=0.05)


def test_disk_blocks_are_not_on_the_gpu(make: Callable[..., Any], smollm2: Path, near: float) -> None:
    whole = make(**ON_GPU)
    llm = make(**ON_GPU, disk_layers=DISK)
    mib = sum(t.size for t in of_blocks(smollm2, expand(DISK))) / 2**20
    assert on_gpu(whole) - on_gpu(llm) == pytest.approx(mib, rel=0.01)
    assert kld(llm, whole) <= near
    llm.standby()
    assert llm.disk_memory().resident == 0
    assert kld(llm, whole) <= near
    assert kld(make(**ON_GPU, disk_layers=DISK, disk_strict=True), whole) <= near


def nodes(lib: Library, path: Path, tokens: list[int]) -> dict[int, tuple[int, int]]:
    """Where the nodes of each block ran in a batch: on the host and on devices."""
    model = lib.model(path, {"skip.disk": DISK}, n_gpu_layers=99)
    ctx = model.context(flash="auto", n_ctx=512, n_batch=512, n_ubatch=512)
    ctx.decode(tokens)
    seen = {}
    for il in range(30):
        host, device = ctypes.c_int32(), ctypes.c_int32()
        assert lib.c.llama_skip_disk_nodes(ctx.p, il, ctypes.byref(host), ctypes.byref(device))
        seen[il] = (host.value, device.value)
    ctx.close()
    model.close()
    return seen


def test_no_node_of_a_disk_block_is_on_the_gpu(ours: Build, make: Callable[..., Any], smollm2: Path) -> None:
    """A batch of 256, of which op_offload would bring everything to the GPU."""
    tokens = make().tokenize(TEXT * 6)[:256]
    seen = ours.worker.fresh(nodes, smollm2, tokens)
    for il, (host, device) in seen.items():
        assert (device == 0 and host > 15) if il in expand(DISK) else device > 15, (il, host, device)
