"""The class Llama, against the unpatched library and against the calls that it is made of.

No function of this file runs in a Worker: that would bring llama_skip's own library into its process.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import llama_skip
import numpy as np
import pytest
from support.rpc import rpc_device

from comparison.builds import Build
from comparison.oracle import TEXT, greedy, logits, of_blocks, skip, tensors

Llama = llama_skip.Llama

MIB = 2**20


@pytest.mark.parametrize(
    ("layers", "blocks"),
    [
        (None, []),
        ("none", []),
        ([], []),
        ("13-14,25", [13, 14, 25]),
        ([25, 13, 14, 13], [13, 14, 25]),
        (range(0, 30, 2), list(range(0, 30, 2))),
        ({29, 0}, [0, 29]),
    ],
    ids=str,
)
def test_logits_are_the_zeroed_files_on_the_unpatched_library(
    stock: Build, make: Any, smollm2: Path, tokens: list[int], zeroed: Any, layers: Any, blocks: list[int]
) -> None:
    file = zeroed(blocks) if blocks else smollm2
    expected = stock.worker.call(logits, file, tokens[:24], n_single=0)
    llm = make(skip_layers=layers)
    found = llm.logits(tokens[:24])
    assert found.dtype == np.float32
    assert found.shape == (24, llm.n_vocab())
    assert np.array_equal(found, expected)
    assert llm.skip_layers == tuple(blocks)
    assert llm.n_layer() == 30
    # a copy: later work does not change it
    before = found.copy()
    llm.logits(tokens[10:30])
    assert np.array_equal(found, before)


@pytest.mark.parametrize(
    ("scale", "text"),
    [
        (0.7, "13:0.7,25:0.7"),
        ("0.7", "13:0.7,25:0.7"),
        ({13: 0.7}, "13:0.7"),
        ("25:1.5;13:0.7", "13:0.7,25:1.5"),
    ],
)
def test_scales(ours: Build, make: Any, smollm2: Path, tokens: list[int], scale: Any, text: str) -> None:
    expected = ours.worker.call(logits, smollm2, tokens[:24], skip("13-14,25", text), n_single=0)
    llm = make(skip_layers="13-14,25", skip_scale=scale)
    assert np.array_equal(llm.logits(tokens[:24]), expected)
    found = {gap: np.float32(a) for gap, a in llm.skip_scale.items()}
    assert found == {int(i.split(":")[0]): np.float32(i.split(":")[1]) for i in text.split(",")}


def test_the_mask(stock: Build, make: Any, tokens: list[int], smollm2: Path, zeroed: Any) -> None:
    llm = make(skip_layers="25")
    llm.set_mask([13, 14])
    assert llm.mask == (13, 14, 25)
    expected = stock.worker.call(logits, zeroed([13, 14, 25]), tokens[:24], n_single=0)
    assert np.array_equal(llm.logits(tokens[:24]), expected)
    llm.set_mask(None)
    assert llm.mask == (25,)
    with pytest.raises(RuntimeError, match="masked"):
        llm.eval(tokens[24:25])
    assert llm.n_tokens == 24
    expected = stock.worker.call(logits, zeroed([25]), tokens[:24], n_single=0)
    assert np.array_equal(llm.logits(tokens[:24]), expected)
    llm.eval(tokens[24:25])
    assert llm.n_tokens == 25
    for bad in ("30", "0-24,26-29", "x"):
        with pytest.raises(ValueError, match="mask"):
            llm.set_mask(bad)
    assert llm.mask == (25,)


@pytest.mark.parametrize("layers", [None, "13-14"])
def test_completion_takes_the_most_probable_tokens(
    ours: Build, make: Any, smollm2: Path, layers: str | None
) -> None:
    prompt = "The capital of France is"
    expected = ours.worker.call(greedy, smollm2, prompt, 12, skip(layers) if layers else {})
    llm = make(skip_layers=layers)
    text = llm.detokenize(expected).decode()
    whole = llm(prompt, max_tokens=12, temperature=0)
    assert whole["choices"][0]["text"] == text
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == 12
    pieces = list(llm.create_completion(prompt, max_tokens=12, temperature=0, stream=True))
    assert "".join(p["choices"][0]["text"] for p in pieces) == text
    assert len(pieces) > 3
    assert pieces[-1]["choices"][0]["finish_reason"] == "length"


def test_sampling_parameters(make: Any) -> None:
    llm = make()
    kwargs = {"max_tokens": 12, "temperature": 1.5, "top_p": 1.0, "top_k": 0}
    texts = [llm("Once upon a time", seed=seed, **kwargs)["choices"][0]["text"] for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]
    greedy_text = llm("Once upon a time", max_tokens=12, temperature=0)["choices"][0]["text"]
    assert llm("Once upon a time", seed=1, **{**kwargs, "top_k": 1})["choices"][0]["text"] == greedy_text
    word = greedy_text.split()[2]
    stopped = llm("Once upon a time", max_tokens=12, temperature=0, stop=word)
    assert stopped["choices"][0]["text"] == greedy_text[: greedy_text.index(word)]
    assert stopped["choices"][0]["finish_reason"] == "stop"


def test_tokens_and_text(stock: Build, make: Any, tokens: list[int]) -> None:
    llm = make()
    assert llm.tokenize(TEXT.encode()) == tokens
    assert llm.detokenize(tokens).decode() == TEXT
    odd = "naïve 🦊 \u0000 日本"
    assert llm.detokenize(llm.tokenize(odd.encode(), add_bos=False)).decode() == odd


def test_memory_is_that_of_the_kept_blocks(make: Any, smollm2: Path) -> None:
    out = [13, 14, 25]
    full, less = make().memory()["CPU"], make(skip_layers=out).memory()["CPU"]
    assert less.weights * MIB == sum(t.size for t in tensors(smollm2) if t.block not in out)
    assert (full.weights - less.weights) * MIB == sum(t.size for t in of_blocks(smollm2, out))
    assert full.kv - less.kv == pytest.approx(full.kv * 3 / 30)
    assert full.kv * MIB == 30 * 2 * 512 * 192 * 2


def test_memory_on_a_device(ours: Build, make: Any, smollm2: Path, tokens: list[int]) -> None:
    out = [13, 14, 25]
    expected = make(skip_layers=out).logits(tokens[:8])
    with rpc_device(ours.tool("ggml-rpc-server")) as device:
        llm = make(skip_layers=out, n_gpu_layers=-1, rpc_servers=device.endpoint)
        memory = next(m for name, m in llm.memory().items() if name.startswith("RPC"))
        assert memory.weights * MIB == sum(t.padded for t in tensors(smollm2) if t.block not in out)
        assert memory.kv * MIB == 27 * 2 * 512 * 192 * 2
        assert device.blocks() == [il for il in range(30) if il not in out]
        assert np.array_equal(llm.logits(tokens[:8]).argmax(1), expected.argmax(1))
        llm.close()


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"skip_layers": ""}, "skip_layers"),
        ({"skip_layers": "30"}, "block 30 is out of range, the model has blocks 0-29"),
        ({"skip_layers": [40]}, "block 40 is out of range"),
        ({"skip_layers": [-1]}, "-1"),
        ({"skip_layers": range(30)}, "every block is left out"),
        ({"skip_layers": "5-3"}, "reversed range"),
        ({"skip_layers": "3-9+0"}, "step 0"),
        ({"skip_layers": "x"}, "malformed"),
        ({"skip_scale": 0.5}, "no gap"),
        ({"skip_layers": "13", "skip_scale": float("nan")}, "finite"),
        ({"skip_layers": "13", "skip_scale": {14: 0.5}}, "no gap begins at block 14"),
        ({"skip_layers": "13", "kv_overrides": {"skip.layers": "13"}}, "skip.layers"),
    ],
    ids=str,
)
def test_a_bad_set_is_a_value_error_before_loading(make: Any, kwargs: dict[str, Any], reason: str) -> None:
    progress: list[float] = []
    with pytest.raises(ValueError, match=reason):
        make(progress=progress.append, **kwargs)
    assert progress == []


def test_unknown_keywords_are_type_errors(make: Any) -> None:
    with pytest.raises(TypeError, match="skip_layer'"):
        make(skip_layer="13")
    with pytest.raises(TypeError):
        make(skip_layers=13.5)
    with pytest.raises(TypeError, match="max_token'"):
        make()("x", max_token=3)
    assert all(p.kind != p.VAR_KEYWORD for p in inspect.signature(Llama.__init__).parameters.values())


def test_files_that_cannot_be_loaded(tmp_path: Path, smollm2: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Llama(tmp_path / "missing.gguf", skip_layers="13")
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"not a model" * 1000)
    with pytest.raises(llama_skip.ModelLoadError, match="invalid magic"):
        Llama(junk, skip_layers="13")
    junk.write_bytes(smollm2.read_bytes()[:50_000_000])
    with pytest.raises(llama_skip.ModelLoadError, match="not within the file bounds"):
        Llama(junk)
