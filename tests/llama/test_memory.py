"""Memory, devices, adapters, logs and threads of the class Llama."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_skip import fit_gpu_layers
from support.adapters import lora_file, names_of, rows
from support.rpc import rpc_device

from comparison.builds import Build
from comparison.oracle import skip

SETS: list[dict[str, Any]] = [
    {},
    {"skip_layers": "13-14,25"},
    {"n_ctx": 1024, "n_batch": 64, "n_ubatch": 64},
    {"type_k": 8, "type_v": 8, "flash_attn": True},  # Q8_0
]


@pytest.mark.parametrize("kwargs", SETS, ids=str)
def test_a_dry_run_has_the_memory_of_the_run(make: Any, kwargs: dict[str, Any]) -> None:
    dry = make(dry_run=True, **kwargs)
    # nothing is mapped in a dry run, so neither is it in the run
    assert dry.memory() == make(use_mmap=False, **kwargs).memory()
    with pytest.raises(RuntimeError, match="without weights"):
        dry.eval([1, 2])
    with pytest.raises(RuntimeError, match="without weights"):
        dry("x")
    assert dry.tokenize(b"one") == make(vocab_only=True).tokenize(b"one")


def test_a_dry_run_on_a_device(ours: Build, make: Any) -> None:
    with rpc_device(ours.tool("ggml-rpc-server")) as device:
        kwargs = {"rpc_servers": device.endpoint, "n_gpu_layers": 10, "skip_layers": "13-14"}
        dry = make(dry_run=True, **kwargs).memory()
        assert device.blocks() == []
        real = make(use_mmap=False, **kwargs)
        assert dry == real.memory()
        assert device.blocks() == list(range(21, 30))
        real.close()


def test_fit_gpu_layers(ours: Build, make: Any, tiny: Path) -> None:
    options = {"skip_layers": "2", "verbose": False, "n_threads": 1}
    assert fit_gpu_layers(tiny, 1e6, devices=[], **options) == 0
    with rpc_device(ours.tool("ggml-rpc-server")) as device:
        options["rpc_servers"] = device.endpoint
        assert fit_gpu_layers(tiny, 1e6, **options) == 4
        assert fit_gpu_layers(tiny, 0, **options) == 0
        for n in (1, 3):
            memory = make(tiny, dry_run=True, **{**options, "n_gpu_layers": n}).memory()
            used = max(sum(m) for name, m in memory.items() if name != "CPU")
            assert fit_gpu_layers(tiny, used + 0.001, **options) == n
            assert fit_gpu_layers(tiny, used - 0.001, **options) == n - 1


def test_an_adapter(ours: Build, make: Any, smollm2: Path, tokens: list[int], tmp_path: Path) -> None:
    path = lora_file(smollm2, tmp_path / "a.gguf", names_of([3, 13, 20], ["attn_q", "ffn_down"]))
    for layers in ("13-14", None):
        overrides = skip(layers) if layers else {}
        expected, _ = ours.worker.call(rows, smollm2, tokens[:12], overrides, lora=path)
        llm = make(skip_layers=layers, lora_path=path, lora_scale=0.75)
        found = np.concatenate([llm.logits(tokens[:9]), *(_next(llm, t) for t in tokens[9:12])])
        assert np.array_equal(found, expected)
        assert not np.array_equal(found[:9], make(skip_layers=layers).logits(tokens[:9]))
    off = make(lora_path=path, lora_scale=0.0)
    assert np.array_equal(off.logits(tokens[:9]), make().logits(tokens[:9]))


def _next(llm: Any, token: int) -> np.ndarray:
    return llm._history.logits([token], 0)


def test_the_log(make: Any, smollm2: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines: list[tuple[str, str, int]] = []
    llm = make(log=lambda level, text: lines.append((level, text, threading.get_ident())))
    assert "loaded meta data" in "".join(text for _, text, _ in lines)
    assert {level for level, _, _ in lines} <= {"error", "warning", "info", "debug"}
    assert {thread for _, _, thread in lines} == {threading.get_ident()}
    llm("x", max_tokens=1)
    llm.close()
    assert capfd.readouterr().err == ""
    make(verbose=False)
    assert capfd.readouterr().err == ""
    make(verbose=True)
    assert "loaded meta data" in capfd.readouterr().err


def test_an_error_in_the_log_callback_is_reported_and_not_raised(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[type[BaseException] | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_type))

    def log(level: str, text: str) -> None:
        raise KeyError("mine")

    llm = make(log=log)
    assert llm("x", max_tokens=1)["usage"]["completion_tokens"] == 1
    llm.close()
    assert set(seen) == {KeyError}


def test_progress(make: Any) -> None:
    seen: list[float] = []
    make(progress=seen.append, use_mmap=False)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    with pytest.raises(Exception, match="was cancelled"):
        make(progress=lambda fraction: False)
    with pytest.raises(KeyError, match="mine"):
        make(progress=lambda fraction: {}["mine"])


@pytest.mark.parametrize("n_threads", [1, 3])
def test_threads_do_not_change_the_logits(make: Any, tokens: list[int], n_threads: int) -> None:
    llm = make(n_threads=n_threads, n_threads_batch=n_threads + 1)
    context = llm._history.context
    assert (context.n_threads, context.n_threads_batch) == (n_threads, n_threads + 1)
    assert np.array_equal(llm.logits(tokens[:6]), make().logits(tokens[:6]))
