"""A search for what ends the process, or answers another question: random lives of a Llama, random arguments.

LLAMA_SKIP_SEARCH is the number of seconds, 60 by default; more than 120 takes new examples each time.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from support.lives import call, live
from support.matrix.arch_files import Base, make, write

from comparison.builds import Build

SECONDS = float(os.environ.get("LLAMA_SKIP_SEARCH", "60"))
SEED = 0 if SECONDS <= 120 else time.time_ns() % 2**32
# full attention, sliding windows, recurrent, and both kinds of hybrid memory
MODELS = [
    "llama-dense",
    "gemma3-dense",
    "gpt-oss-moe",
    "mamba-dense",
    "rwkv7",
    "falcon-h1-dense",
    "lfm2-dense",
]
OTHERS = ["bert", "modern-bert", "t5encoder", "t5", "llama-moe", "gemma4", "deepseek2-moe"]
WINDOW = 8


class Process:
    """Calls functions in one process after the other: a new one where the last one died."""

    def __init__(self) -> None:
        self.pool: ProcessPoolExecutor | None = None

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        self.pool = self.pool or ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        try:
            return self.pool.submit(function, *args).result(timeout=120)
        except (BrokenProcessPool, TimeoutError):
            self.close()
            raise

    def close(self) -> None:
        if self.pool is not None:
            for process in list(self.pool._processes.values()):
                process.kill()
            self.pool.shutdown()
            self.pool = None


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    process = Process()
    yield process
    process.close()


@pytest.fixture(scope="module")
def paths(stock: Build, bases: dict[str, Base], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("search")
    found = {}
    for name in MODELS + OTHERS:
        model = make(stock, folder, bases, name)
        metadata = [
            (key, WINDOW if key.endswith(".attention.sliding_window") else value, kind, item)
            for key, value, kind, item in model.metadata
        ]
        found[name] = write(folder / f"{name}.gguf", model.arch, metadata, model.tensors)
    return found


def search(n_seconds: float, strategies: dict[str, Any], run: Callable[..., list[str]]) -> None:
    """Call `run` with examples for a while, and say what was refused."""
    end = time.monotonic() + n_seconds
    said: Counter[str] = Counter()
    n_done = 0

    @seed(SEED)
    @settings(
        max_examples=int(n_seconds * 50),
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(**strategies)
    def once(**drawn: Any) -> None:
        nonlocal n_done
        if time.monotonic() < end:
            said.update(text[:60] for text in run(**drawn))
            n_done += 1

    once()
    print(f"seed {SEED}: {n_done} examples, {said.total()} refusals of {len(said)} kinds")
    print("\n".join(f"{n:6} {text}" for text, n in said.most_common(40)))
    assert n_done > n_seconds / 20


tokens = st.lists(st.integers(3, 60), min_size=1, max_size=40)
keeps = st.integers(0, 96)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("eval"), tokens),
        st.tuples(st.just("logits"), tokens),
        st.tuples(st.just("truncate"), keeps),
        st.tuples(st.just("mask"), st.sampled_from([None, "2", "1-2"])),
        st.tuples(st.just("save")),
        st.tuples(st.just("load")),
        st.tuples(st.just("complete"), keeps, tokens, st.integers(1, 8)),
        st.tuples(st.just("generate"), keeps, tokens, st.integers(1, 8)),
    ),
    min_size=1,
    max_size=12,
)
lives = st.fixed_dictionaries(
    {},
    optional={
        "swa_full": st.booleans(),
        "n_batch": st.sampled_from([4, 16, 512]),
        "n_ubatch": st.sampled_from([1, 4, 512]),
        "logits_all": st.booleans(),
        "skip_layers": st.sampled_from(["3", "none"]),
    },
)


def test_lives(process: Process, paths: dict[str, Path]) -> None:
    def run(name: str, options: dict[str, Any], todo: list[tuple[Any, ...]]) -> list[str]:
        found: list[str] = process(live, paths[name], options, todo)
        return found

    search(SECONDS / 2, {"name": st.sampled_from(MODELS), "options": lives, "todo": steps}, run)


odd_ints = st.sampled_from([-(2**63), -(2**31), -2, -1, 0, 1, 2, 7, 64, 2**31 - 1, 2**31, 2**32, 2**63])
odd_floats = st.sampled_from([-1e30, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0, 1e30]) | st.floats(allow_subnormal=False)
odd_texts = st.text(max_size=20) | st.sampled_from(
    ["", "\0", "\ud800", "a" * 3000, "<|im_start|>", "{{", "%s"]
)
json_values = st.recursive(
    st.none() | st.booleans() | odd_ints | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
schema_words = st.sampled_from(
    ["object", "array", "string", "integer", "number", "null", "boolean", "date", "uuid", "^a+$", "(", "#/x"]
)
schemas = st.recursive(
    schema_words.map(lambda kind: {"type": kind})
    | st.fixed_dictionaries({"enum": st.lists(json_values, max_size=3)})
    | st.fixed_dictionaries({"const": json_values})
    | st.fixed_dictionaries({"$ref": schema_words})
    | st.fixed_dictionaries({"type": st.just("string"), "pattern": schema_words | st.text(max_size=6)})
    | st.fixed_dictionaries({"type": st.just("string"), "minLength": odd_ints, "maxLength": odd_ints})
    | st.fixed_dictionaries({"type": st.just("integer"), "minimum": odd_ints, "maximum": odd_ints}),
    lambda inner: (
        st.fixed_dictionaries({"type": st.just("array"), "items": inner, "minItems": st.integers(-1, 4)})
        | st.fixed_dictionaries({"anyOf": st.lists(inner, max_size=3)})
        | st.fixed_dictionaries({"allOf": st.lists(inner, max_size=3)})
        | st.fixed_dictionaries(
            {
                "type": st.just("object"),
                "properties": st.dictionaries(st.text(max_size=5), inner, max_size=3),
                "required": st.lists(st.text(max_size=5), max_size=2),
                "additionalProperties": st.booleans() | inner,
            }
        )
    ),
    max_leaves=5,
) | json_values.filter(lambda value: isinstance(value, dict))
words = ["root ::= ", "root", "x ::= ", "x", '"a"', '""', "[a-z]", "[^\\n]", "(", ")", "*", "+", "?", "{2}"]
words += ["{0,9999999}", "|", "\n", "<[5]>", "!<[5]>", "#", "\\", "[\\x00-\\U0010FFFF]", "."]
grammars = st.lists(st.sampled_from(words), max_size=12).map(" ".join) | st.text(max_size=20)
biases = st.dictionaries(st.integers(-2, 49152), odd_floats, max_size=4) | st.just("all")
sampling = {
    "max_tokens": st.sampled_from([-1, 0, 1, 4]) | st.none(),
    "temperature": odd_floats,
    "top_p": odd_floats,
    "top_k": odd_ints,
    "min_p": odd_floats,
    "typical_p": odd_floats,
    "frequency_penalty": odd_floats,
    "presence_penalty": odd_floats,
    "repeat_penalty": odd_floats,
    "mirostat_mode": st.integers(-1, 3),
    "mirostat_tau": odd_floats,
    "mirostat_eta": odd_floats,
    "seed": odd_ints | st.none(),
    "stop": st.none() | odd_texts | st.lists(odd_texts, max_size=3),
    "grammar": st.none() | grammars,
    "logit_bias": biases,
    "stream": st.booleans(),
    "logprobs": st.none() | odd_ints,
}
function = st.fixed_dictionaries(
    {"name": odd_texts}, optional={"parameters": schemas, "strict": st.booleans()}
)
tools = st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": function}), max_size=2)
roles = st.sampled_from(["user", "system", "assistant", "tool", "x"])
messages = st.lists(st.fixed_dictionaries({"role": roles, "content": odd_texts | json_values}), max_size=3)
formats = st.fixed_dictionaries({"type": st.just("json_object"), "schema": schemas})


def some(options: dict[str, Any], needed: dict[str, Any] | None = None) -> st.SearchStrategy[dict[str, Any]]:
    """At most four of the options: with more of them odd, the first one is all that is looked at."""
    names = st.lists(st.sampled_from(sorted(options)), max_size=4, unique=True)
    return names.flatmap(
        lambda chosen: st.fixed_dictionaries({**(needed or {}), **{name: options[name] for name in chosen}})
    )


def calls_of(name: str, needed: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[Any]:
    return st.tuples(st.just(name), some(optional, needed) if optional else st.fixed_dictionaries(needed))


chat_options = {**sampling, "logprobs": st.booleans(), "top_logprobs": odd_ints}
chat_options |= {"tools": tools, "tool_choice": st.sampled_from(["auto", "none", "required"])}
texts = odd_texts | st.lists(odd_texts, max_size=3)
few = st.lists(st.integers(0, 99))
calls = st.lists(
    st.one_of(
        calls_of(
            "create_completion",
            {"prompt": odd_texts | st.lists(odd_ints, max_size=4)},
            {**sampling, "echo": st.booleans(), "suffix": st.none() | odd_texts},
        ),
        calls_of(
            "create_chat_completion", {"messages": messages}, {**chat_options, "response_format": formats}
        ),
        calls_of("eval", {"tokens": st.lists(odd_ints, max_size=80)}, {}),
        calls_of("logits", {"tokens": few, "first": odd_ints}, {}),
        calls_of("embed", {"input": texts}, {}),
        calls_of("truncate", {"n_tokens": odd_ints}, {}),
        calls_of("set_mask", {"layers": odd_texts | st.sampled_from(["1", "0-2"])}, {"scale": odd_floats}),
        calls_of("hidden_states", {"tokens": few}, {}),
        calls_of("tokenize", {"text": st.binary(max_size=20)}, {}),
        calls_of("detokenize", {"tokens": st.lists(odd_ints, max_size=4)}, {}),
    ),
    max_size=5,
)
keys = ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"]
keys += ["attention.head_count_kv", "attention.key_length", "attention.value_length", "vocab_size"]
keys += ["rope.dimension_count", "attention.layer_norm_rms_epsilon", "expert_count", "expert_used_count"]
overrides = st.dictionaries(
    st.sampled_from(keys),
    odd_ints | odd_floats | st.booleans() | odd_texts,
    max_size=2,
)
loads = some(
    {
        "n_ctx": st.sampled_from([-1, 0, 1, 64, 300]),
        "n_batch": st.sampled_from([-1, 0, 1, 3, 512]),
        "n_ubatch": st.sampled_from([-1, 0, 1, 512]),
        "n_gpu_layers": odd_ints,
        "split_mode": st.integers(-1, 4),
        "main_gpu": st.integers(-1, 2),
        "tensor_split": st.none() | st.lists(odd_floats, max_size=3),
        "pooling_type": st.integers(-2, 5),
        "attention_type": st.integers(-2, 2),
        "rope_scaling_type": st.integers(-2, 4),
        "rope_freq_base": odd_floats,
        "rope_freq_scale": odd_floats,
        "yarn_ext_factor": odd_floats,
        "yarn_orig_ctx": odd_ints,
        "type_k": st.sampled_from([-1, 0, 1, 8, 2, 39, 999]),
        "type_v": st.sampled_from([-1, 0, 1, 8, 2, 39, 999]),
        "flash_attn": st.none() | st.booleans(),
        "swa_full": st.booleans(),
        "logits_all": st.booleans(),
        "embedding": st.booleans(),
        "hidden_states": st.booleans(),
        "offload_kqv": st.booleans(),
        "seed": odd_ints,
        "last_n_tokens_size": odd_ints,
        "kv_overrides": overrides,
        "skip_layers": odd_texts | st.sampled_from(["1", "0-3", "1-2", "auto:50%"]),
        "skip_scale": odd_floats | odd_texts,
        "disk_layers": odd_texts | st.just("1"),
        "chat_format": st.sampled_from(["chatml", "llama-2", "x"]),
        "vocab_only": st.booleans(),
        "dry_run": st.booleans(),
    },
)


def test_arguments(process: Process, paths: dict[str, Path], tiny: Path) -> None:
    models = {"tiny": tiny, **paths}

    def run(name: str, options: dict[str, Any], todo: list[tuple[str, dict[str, Any]]]) -> list[str]:
        found: list[str] = process(call, models[name], options, todo)
        return found

    odd = {"name": st.sampled_from(sorted(models)), "options": loads, "todo": calls}
    plain = {"name": st.just("tiny"), "options": st.just({"n_ctx": 256}), "todo": calls}
    for strategies in (odd, plain):
        search(SECONDS / 4, strategies, run)
