"""Random sets, architectures and features: the library refuses or works, it never aborts, and it forgets
what it must.

About a minute by default; LLAMA_SKIP_FUZZ is another number of seconds, and more than 120 takes every
architecture.
"""

from __future__ import annotations

import os
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fuzz import live
from support.matrix.arch_cases import EMBEDDINGS
from support.matrix.arch_files import Base, Model, make, write
from support.matrix.arch_recipes import RECIPES
from support.matrix.architectures import MODELS

from comparison.builds import Build

SECONDS = float(os.environ.get("LLAMA_SKIP_FUZZ", "60"))
FEW = [
    *("llama-dense", "gemma4-shared", "gemma3n", "rwkv6", "rwkv7", "bert", "modern-bert"),
    *("deepseek4-moe", "glm5-next-moe", "hy_v4-moe", "jamba-dense", "granitehybrid-dense", "mamba-dense"),
    *("qwen35moe-moe-nextn", "kimi-k3-moe", "lfm2-dense", "nanbeige-loops", "gpt-oss-moe"),
]
CHOICE = [m for m in MODELS if m not in RECIPES or RECIPES[m].tensors] if SECONDS > 120 else FEW


@pytest.fixture(scope="module")
def files(stock: Build, bases: dict[str, Base], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("fuzz")
    known: dict[str, tuple[Path, Model]] = {}

    def get(name: str) -> tuple[Path, Model]:
        if name not in known:
            model = make(stock, folder, bases, name)
            path = write(folder / f"{name}.gguf", model.arch, model.metadata, model.tensors)
            known[name] = (path, Model(name, model.arch, model.metadata, {}))
        return known[name]

    return get


def specs(n_layer: int) -> st.SearchStrategy[str]:
    block = st.integers(0, n_layer)  # the last is one too many
    ranges = st.tuples(block, block).map(lambda ab: f"{min(ab)}-{max(ab)}")
    return st.lists(block.map(str) | ranges, min_size=1, max_size=4).map(",".join) | st.just("none")


seq = st.integers(0, 2)
steps = st.one_of(
    st.tuples(st.just("decode"), seq, st.integers(1, 6)),
    st.tuples(st.just("decode"), seq, st.integers(1, 6)),
    st.tuples(st.just("remove"), seq, st.integers(1, 9)),
    st.tuples(st.just("copy"), seq, seq),
    st.tuples(st.just("save"), seq),
    st.tuples(st.just("restore"), seq, seq),
    st.tuples(st.just("clear")),
)
loads = st.fixed_dictionaries(
    {
        "load_mode": st.sampled_from(["none", "mmap", "mmap+mlock", "dio"]),
        "n_gpu_layers": st.sampled_from([-1, 0, 1, 99]),
        "use_extra_bufts": st.booleans(),
    }
)
contexts = st.fixed_dictionaries(
    {
        "flash": st.sampled_from(["off", "on", "auto"]),
        "n_ctx": st.just(256),
        "n_ubatch": st.sampled_from([4, 512]),
        "n_seq_max": st.just(3),
        "kv_unified": st.booleans(),
        "swa_full": st.booleans(),
        "type_k": st.sampled_from([0, 1, 8]),  # float32, float16, q8_0
        "type_v": st.sampled_from([0, 1, 8]),
    }
)


def fails(build: Build, *args: Any) -> bool:
    try:
        build.worker.call(live, *args)
    except (BrokenProcessPool, AssertionError):
        return True
    return False


def test_nothing_that_the_grammar_allows_aborts(stock: Build, ours: Build, files: Any) -> None:
    end = time.monotonic() + SECONDS
    refused: list[str] = []
    n_done = n_upstream = 0

    @settings(
        max_examples=int(SECONDS * 20),
        deadline=None,
        derandomize=SECONDS <= 120,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data(), name=st.sampled_from(CHOICE), load=loads, params=contexts)
    def run(data: st.DataObject, name: str, load: dict[str, Any], params: dict[str, Any]) -> None:
        nonlocal n_done, n_upstream
        path, model = files(name)
        params = {**params, "embeddings": model.arch in EMBEDDINGS}
        if params["embeddings"]:
            params["n_ubatch"] = 512  # upstream asserts that a batch of an encoder is one ubatch
        spec = specs(model.n_layer)
        scale = st.none() | st.sampled_from(["1", "0.5", "0:2"])
        masks = st.tuples(st.just("mask"), st.none() | spec, scale)
        overrides = data.draw(
            st.fixed_dictionaries({}, optional={"skip.layers": spec, "skip.scale": st.just("0.5")})
        )
        todo = data.draw(st.lists(steps | masks, max_size=9))
        args = (path, overrides, load, params, todo)
        if time.monotonic() > end:
            return  # behind the draws, or Hypothesis sees another test
        try:
            refused.extend(ours.worker.call(live, *args))
        except (BrokenProcessPool, AssertionError) as err:
            plain = (path, {}, load, params, [s for s in todo if s[0] != "mask"])
            assert fails(stock, *plain), f"{name} {args[1:]}: {err}"
            n_upstream += 1
        n_done += 1

    run()
    print(f"{n_done} lives, {len(refused)} refusals, {n_upstream} where upstream fails as well")
    assert n_done > SECONDS / 4
    assert n_upstream < n_done / 10
    assert all(len(text) > 20 for text in refused)
