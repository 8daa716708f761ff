"""What goes wrong when a Llama is made or called: type, message, and that nothing stays loaded."""

from __future__ import annotations

import gc
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import llama_skip
import numpy as np
import pytest
from llama_skip import Llama, ModelLoadError
from support.shared.ids import stable

from comparison.server import free_port

QUIET = {"n_threads": 1, "n_threads_batch": 1, "verbose": False, "n_ctx": 256}


def still_open(path: Path) -> list[str]:
    """Mappings of a file and descriptors on it, of this process."""
    found = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of the listing itself
            found += [os.readlink(fd)] if os.readlink(fd) == str(path) else []
    return found


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

CONSTRUCTION: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"skip_layers": "4"}, ValueError, "skip_layers: block 4 is out of range, the model has blocks 0-3"),
    ({"skip_layers": b"1"}, TypeError, "skip_layers: expected a text or blocks, not bytes"),
    ({"skip_layers": [True]}, TypeError, "skip_layers: a block is an int, not bool"),
    ({"skip_layers": ["1"]}, TypeError, "skip_layers: a block is an int, not str"),
    ({"skip_layers": "1", "skip_scale": ""}, ValueError, "skip_scale: empty"),
    ({"skip_layers": "1", "skip_scale": {1: "x"}}, ValueError, "x"),
    ({"skip_layers": "1", "skip_scale": [1]}, TypeError, "skip_scale: a factor is a number, not list"),
    ({"skip_layers": "1", "skip_scale": {"1": 0.5}}, TypeError, "skip_scale: a block is an int, not str"),
    ({"skip_layers": "1", "skip_scale": float("inf")}, ValueError, "finite"),
    ({"n_ctx": -1}, ValueError, "n_ctx: -1 is too small, the least is 0"),
    ({"n_batch": 0}, ValueError, "n_batch: 0 is too small, the least is 1"),
    ({"n_ubatch": 0}, ValueError, "n_ubatch: 0 is too small, the least is 1"),
    ({"n_ctx": "x"}, TypeError, "."),
    ({"n_ctx": 2**40}, TypeError, "n_ctx"),
    ({"n_gpu_layers": "x"}, TypeError, "n_gpu_layers: 'x' is not allowed, expected int"),
    ({"n_threads": -1}, ValueError, "n_threads"),
    ({"n_threads_batch": -2}, ValueError, "n_threads_batch"),
    ({"split_mode": 9}, ValueError, "split_mode"),
    ({"main_gpu": "x"}, TypeError, "main_gpu"),
    ({"tensor_split": [1.0] * 1000}, ValueError, "tensor_split: 1000 devices, at most"),
    ({"tensor_split": 3}, TypeError, "tensor_split"),
    ({"devices": "Nonsense0"}, ValueError, "Nonsense0"),
    ({"devices": "a,,b"}, ValueError, "devices: empty name"),
    ({"rpc_servers": "nowhere"}, ValueError, "rpc_servers: 'nowhere' is not HOST:PORT"),
    ({"rpc_servers": "a:99999"}, ValueError, "rpc_servers: 'a:99999' is not HOST:PORT"),
    ({"rpc_servers": f"127.0.0.1:{free_port()}"}, ModelLoadError, "rpc_servers: cannot connect to 127.0.0.1"),
    ({"kv_overrides": {"": 1}}, ValueError, "kv_overrides: the key '' has to have 1 to 127 bytes"),
    ({"kv_overrides": {"k" * 128: 1}}, ValueError, "has to have 1 to 127 bytes"),
    ({"kv_overrides": {"k": "v" * 128}}, ValueError, "the value of 'k' is longer than 127 bytes"),
    ({"kv_overrides": {"k": None}}, TypeError, "kv_overrides: k is a NoneType"),
    ({"kv_overrides": {"k": 2**70}}, (TypeError, ValueError, OverflowError), "."),
    ({"kv_overrides": {"skip.layers": "9"}}, ValueError, "block 9 is out of range"),
    ({"kv_overrides": {"skip.nonsense": "9"}}, ValueError, "skip.nonsense"),
    ({"rope_scaling_type": 77}, ValueError, "rope_scaling_type"),
    ({"pooling_type": 77}, ValueError, "pooling_type"),
    ({"attention_type": 77}, ValueError, "attention_type"),
    ({"rope_freq_base": "x"}, TypeError, "rope_freq_base"),
    ({"yarn_orig_ctx": -1}, TypeError, "yarn_orig_ctx"),
    ({"flash_attn": False, "type_v": 8}, RuntimeError, "cannot create a context"),
    ({"type_k": 999}, ValueError, "type_k: 999 is not a ggml type"),
    ({"type_v": 4}, ValueError, "type_v: 4 is not a ggml type"),  # Q4_2, which is gone
    ({"type_k": "x"}, TypeError, "type_k"),
    ({"chat_format": "x"}, ValueError, "chat_format: 'x' is not one of"),
    ({"chat_template": "{% if %}"}, ValueError, "chat_template"),
    ({"lora_path": "missing.gguf"}, FileNotFoundError, "missing.gguf"),
    ({"lora_base": "x"}, TypeError, "lora_base is not supported, use instead: .*lora_path"),
    ({"chat_handler": None}, TypeError, "chat_handler is not supported, use instead: chat_format"),
    ({"draft_model": None}, TypeError, "draft_model is not supported, use instead: llama-server"),
    ({"tokenizer": None}, TypeError, "tokenizer is not supported"),
    ({"numa": True}, TypeError, "numa is not supported, use instead: .*numactl"),
    ({"spm_infill": True}, TypeError, "spm_infill is not supported"),
    ({"skip_layer": "1"}, TypeError, "skip_layer'"),
    ({"tiers": ["1"]}, TypeError, "tiers: expected sets by name, not list"),
    ({"tiers": {3: "1"}}, TypeError, "tiers: a name is a text, not int"),
    ({"tiers": {"a": None}}, TypeError, "tiers: a: expected a text or blocks, not NoneType"),
    ({"tiers": {"a": 1}}, TypeError, "tiers: a: expected a text or blocks, not int"),
    ({"tiers": {"a": ""}}, ValueError, "tiers: a: empty"),
    ({"tiers": {"none": "1"}}, ValueError, "tiers: 'none' is no name, but a set"),
    ({"tiers": {"1-2": "1"}}, ValueError, "tiers: '1-2' is no name, but a set"),
    ({"tiers": {"@x": "1"}}, ValueError, "tiers: '@x' is no name: 1 to 64 letters"),
    ({"tiers": {"x" * 65: "1"}}, ValueError, "is no name: 1 to 64 letters"),
    ({"tiers": {"": "1"}}, ValueError, "is no name: 1 to 64 letters"),
    ({"tiers": {"a": "1", "b": "4"}}, ValueError, "tiers: b: block 4 is out of range"),
    ({"tiers": {"a": "auto:25%"}}, ValueError, "tiers: a: 'auto:25%': the model brings no greedy path"),
    ({"tiers": {"a": "@x"}}, ValueError, "tiers: a: '@x': the model brings no plan"),
    ({"tiers": {"a": "3"}, "skip_layers": "0-2"}, ValueError, "tiers: a: every block is left out"),
    ({"tiers": {"a": "3"}, "vocab_only": True}, ValueError, "tiers: a vocabulary has no depth"),
    ({"progress": lambda fraction: False}, ModelLoadError, "was cancelled"),
    ({"progress": lambda fraction: 1 // 0}, ZeroDivisionError, "."),
    ({"progress": 3}, TypeError, "."),
]


@linux
@pytest.mark.parametrize("use_mmap", [True, False], ids=["mmap", "read"])
@pytest.mark.parametrize(("kwargs", "error", "reason"), CONSTRUCTION, ids=lambda value: stable(value)[:60])
def test_nothing_stays_loaded_where_making_fails(
    tiny: Path, kwargs: dict[str, Any], error: type[Exception], reason: str, use_mmap: bool
) -> None:
    with pytest.raises(error, match=reason):
        Llama(tiny, **{**QUIET, "use_mmap": use_mmap, **kwargs})
    gc.collect()
    assert still_open(tiny) == []


@linux
def test_the_mapping_is_seen_and_goes_with_close(tiny: Path) -> None:
    llm = Llama(tiny, **QUIET)
    assert still_open(tiny)
    llm.close()
    assert still_open(tiny) == []
    llm.close()
    with Llama(tiny, **QUIET):
        assert still_open(tiny)
    assert still_open(tiny) == []


@linux
def test_an_adapter_of_another_model(tiny: Path, smollm2: Path, tmp_path: Path) -> None:
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"not an adapter" * 100)
    for path in (junk, smollm2):
        with pytest.raises(ModelLoadError, match="cannot load the LoRA adapter"):
            Llama(tiny, **QUIET, lora_path=path)
        gc.collect()
        assert still_open(tiny) == still_open(path) == []


def test_paths(tmp_path: Path) -> None:
    missing = tmp_path / "m\u00efssing.gguf"
    with pytest.raises(FileNotFoundError) as caught:
        Llama(missing)
    assert caught.value.filename == str(missing)
    with pytest.raises(ModelLoadError, match="cannot load"):
        Llama(tmp_path, verbose=False)
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ModelLoadError, match="cannot load"):
        Llama(tmp_path / "empty.gguf", verbose=False)
    with pytest.raises(TypeError):
        Llama(3)  # type: ignore[arg-type]


def test_a_name_that_is_not_ascii(tiny: Path, tmp_path: Path) -> None:
    link = tmp_path / "m\u00f6del \u65e5\u672c.gguf"
    link.symlink_to(tiny)
    with Llama(link, **QUIET) as llm:
        assert llm("x", max_tokens=1)["model"] == str(link)


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[Llama]:
    with Llama(tiny, **QUIET, kv_overrides={"tokenizer.chat_template": "{{ messages[0].content }}"}) as made:
        yield made


@pytest.mark.parametrize(
    ("kwargs", "error", "reason"),
    [
        ({"prompt": []}, ValueError, "prompt: empty"),
        ({"prompt": 3}, TypeError, "."),
        ({"prompt": None}, TypeError, "."),
        ({"prompt": ["x"]}, ValueError, "."),
        ({"prompt": [49152]}, ValueError, "49152"),
        ({"prompt": [-1]}, ValueError, "-1"),
        ({"prompt": [1] * 256}, ValueError, "exceed context window of 256"),
        ({"suffix": "y"}, ValueError, "suffix"),
        ({"grammar": "root ::= ("}, ValueError, "grammar"),
        ({"grammar": "x ::= 'a'"}, ValueError, "grammar"),
        ({"mirostat_mode": 3}, ValueError, "mirostat_mode: has to be 0, 1 or 2"),
        ({"mirostat_mode": -1}, ValueError, "mirostat_mode: has to be 0, 1 or 2"),
        ({"temperature": "hot"}, TypeError, "."),
        ({"top_k": 1.5}, TypeError, "."),
        ({"logit_bias": {"x": 1}}, ValueError, "."),
        ({"logit_bias": {49152: 1}}, ValueError, "49152"),
        ({"logit_bias": {-1: 1}}, ValueError, "-1"),
        ({"logprobs": -1}, ValueError, "logprobs"),
        ({"logits_processor": [lambda ids, scores: None]}, (TypeError, ValueError), "."),
        ({"logits_processor": [3]}, TypeError, "not callable"),
        ({"stopping_criteria": [3]}, TypeError, "not callable"),
        ({"stop": 3}, TypeError, "."),
        ({"tfs_z": 1.0}, TypeError, "tfs_z is not supported, use instead: .*min_p"),
        ({"penalize_nl": True}, TypeError, "penalize_nl is not supported, use instead: .*logit_bias"),
        ({"max_token": 3}, TypeError, "max_token'"),
        ({"skip_layers": "slow"}, ValueError, "skip_layers: 'slow' is no set and no tier; tiers: none"),
        ({"skip_layers": "4"}, ValueError, "skip_layers: block 4 is out of range"),
        ({"skip_layers": 1}, TypeError, "skip_layers: expected a text or blocks, not int"),
    ],
    ids=lambda value: stable(value)[:60],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_completion(
    llm: Llama, kwargs: dict[str, Any], error: type[Exception], reason: str, stream: bool
) -> None:
    kwargs = {"prompt": "one two", "max_tokens": 2, "temperature": 0.5, "stream": stream, **kwargs}
    with pytest.raises(error, match=reason):
        list(llm.create_completion(**kwargs))
    assert llm("one two", max_tokens=1)["usage"]["completion_tokens"] <= 1


def test_text_that_is_not_bytes(llm: Llama) -> None:
    with pytest.raises(TypeError):
        llm.tokenize(3)  # type: ignore[arg-type]
    for bad in ([49152], [-1]):
        with pytest.raises(ValueError, match=str(bad[0])):
            llm.detokenize(bad)
    with pytest.raises(TypeError):
        llm.detokenize(["x"])  # type: ignore[list-item]


CALLS: dict[str, Any] = {
    "__call__": lambda llm: llm("x"),
    "create_completion stream": lambda llm: next(llm.create_completion("x", stream=True)),
    "create_chat_completion": lambda llm: llm.create_chat_completion([{"role": "user", "content": "x"}]),
    "generate": lambda llm: next(llm.generate([1])),
    "sample": lambda llm: llm.sample(),
    "eval": lambda llm: llm.eval([1]),
    "logits": lambda llm: llm.logits([1]),
    "hidden_states": lambda llm: llm.hidden_states([1]),
    "trace": lambda llm: llm.trace([1]),
    "resume": lambda llm: llm.resume(np.zeros((1, llm.n_embd()), np.float32)),
    "reset": lambda llm: llm.reset(),
    "truncate": lambda llm: llm.truncate(0),
    "set_mask": lambda llm: llm.set_mask("1"),
    "mask": lambda llm: llm.mask,
    "memory": lambda llm: llm.memory(),
    "n_ctx": lambda llm: llm.n_ctx(),
    "n_tokens": lambda llm: llm.n_tokens,
    "scores": lambda llm: llm.scores,
    "input_ids": lambda llm: llm.input_ids,
    "eval_tokens": lambda llm: llm.eval_tokens,
    "pooling_type": lambda llm: llm.pooling_type(),
    "save_state": lambda llm: llm.save_state(),
    "embed": lambda llm: llm.embed("x"),
    "probe": lambda llm: llm.probe("x", "1"),
}
OF_A_VOCABULARY: dict[str, Any] = {
    "tokenize": lambda llm: llm.tokenize(b"x"),
    "detokenize": lambda llm: llm.detokenize([1]),
    "n_vocab": lambda llm: llm.n_vocab(),
    "n_layer": lambda llm: llm.n_layer(),
    "n_embd": lambda llm: llm.n_embd(),
    "metadata": lambda llm: llm.metadata,
    "token_bos": lambda llm: llm.token_bos(),
    "token_eos": lambda llm: llm.token_eos(),
    "token_nl": lambda llm: llm.token_nl(),
    "adds_bos": lambda llm: llm.adds_bos,
    "skip_layers": lambda llm: llm.skip_layers,
    "skip_scale": lambda llm: llm.skip_scale,
    "tiers": lambda llm: llm.tiers,
    "disk_layers": lambda llm: llm.disk_layers,
    "disk_scale": lambda llm: llm.disk_scale,
    "disk_memory": lambda llm: llm.disk_memory(),
    "standby": lambda llm: llm.standby(),
}


def test_a_closed_object(tiny: Path) -> None:
    llm = Llama(tiny, **QUIET, embedding=True)
    state, stream = llm.save_state(), llm.create_completion("one two", stream=True)
    llm.close()
    calls = {**CALLS, **OF_A_VOCABULARY, "load_state": lambda llm: llm.load_state(state)}
    for name, call in calls.items():
        with pytest.raises(RuntimeError, match="this Llama is closed"):
            call(llm)
            pytest.fail(f"{name} did not raise")
    # a stream that was begun holds what it needs
    assert list(stream)
    # every public method and property is among these calls, or needs nothing loaded
    public = {name for name, _ in inspect.getmembers(Llama) if not name.startswith("_")}
    others = {"close", "from_pretrained", "logits_to_logprobs", "set_seed", "create_embedding"}
    others |= {"last_n_tokens_size", "create_completion"}
    assert public - others == {name for name in calls if name.isidentifier()} - {"__call__"}


def test_a_vocabulary_alone(tiny: Path) -> None:
    with Llama(tiny, **QUIET, vocab_only=True) as llm:
        for name, call in CALLS.items():
            if name != "embed":
                with pytest.raises(RuntimeError, match="this Llama has only a vocabulary"):
                    call(llm)
                    pytest.fail(f"{name} did not raise")
        for call in OF_A_VOCABULARY.values():
            call(llm)


def test_names_that_are_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'llama_skip' has no attribute 'Lama'"):
        llama_skip.Lama  # noqa: B018
    assert set(dir(llama_skip)) == set(llama_skip.__all__)
    for name in llama_skip.__all__:
        assert getattr(llama_skip, name)
