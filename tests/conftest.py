"""Fixtures: ours as installed, the unpatched build of the same source, the model and changed copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.matrix.arch_files import Base, generated, write
from support.matrix.arch_files import make as make_model
from support.rpc import Proxy, rpc_device
from support.tiny import blocks, random_model, small_vocab

from comparison import builds
from comparison.builds import Build
from comparison.oracle import tokens_of, zeroed_copy


@pytest.fixture(scope="session")
def stock() -> Iterator[Build]:
    build = builds.stock()
    yield build
    build.worker.close()


@pytest.fixture(scope="session")
def ours() -> Iterator[Build]:
    build = builds.ours()
    yield build
    build.worker.close()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return builds.smollm2()


@pytest.fixture(scope="session")
def llama_cpp() -> Path:
    return builds.llama_cpp()


@pytest.fixture(scope="session")
def tokens(stock: Build, smollm2: Path) -> list[int]:
    found: list[int] = stock.worker.call(tokens_of, smollm2)
    return found


@pytest.fixture(scope="session")
def zeroed(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[int] | str], Path]:
    """From blocks or a set to SmolLM2 with these made identities; each file is written once."""
    folder = tmp_path_factory.mktemp("zeroed")

    def make(out: list[int] | str) -> Path:
        name = out.replace(":", "") if isinstance(out, str) else "-".join(map(str, sorted(out)))
        path = folder / f"{name}.gguf"
        return path if path.exists() else zeroed_copy(smollm2, path, out)

    return make


@pytest.fixture(scope="session")
def bases(stock: Build, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    """What upstream's generator writes, by the name of its file."""
    folder = tmp_path_factory.mktemp("generated")
    found = generated(stock, folder)
    for path in folder.glob("*.gguf"):
        path.unlink()
    return found


@pytest.fixture(scope="session")
def tiny(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four small random blocks with SmolLM2's vocabulary."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    return random_model(path, smollm2, "qwen3", 4, blocks(4, post_norm="ffn_norm"), {})


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a vocabulary of 64 tokens, for tests that only read and write files."""
    folder = tmp_path_factory.mktemp("small")
    vocab = small_vocab(folder / "vocab.gguf")
    return random_model(folder / "small.gguf", vocab, "qwen3", 4, blocks(4, post_norm="ffn_norm"), {})


@pytest.fixture(scope="session")
def windows(stock: Build, bases: dict[str, Base], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model most of whose blocks see eight tokens."""
    folder = tmp_path_factory.mktemp("windows")
    model = make_model(stock, folder, bases, "gemma3-dense")
    key = "gemma3.attention.sliding_window"
    metadata = [(k, 8 if k == key else v, *rest) for k, v, *rest in model.metadata]
    assert key in dict(m[:2] for m in metadata)
    return write(folder / "windows.gguf", model.arch, metadata, model.tensors)


@pytest.fixture
def device(ours: Build) -> Iterator[Proxy]:
    with rpc_device(ours.tool("ggml-rpc-server")) as proxy:
        yield proxy


@pytest.fixture
def make(smollm2: Path) -> Iterator[Callable[..., Any]]:
    """Llama with SmolLM2 and one thread, or another model; every one of them is closed."""
    from llama_skip import Llama

    made: list[Any] = []

    def open_model(path: Path = smollm2, **kwargs: Any) -> Any:
        made.append(Llama(path, **{"n_threads": 1, "n_threads_batch": 1, "verbose": False, **kwargs}))
        return made[-1]

    yield open_model
    for llm in made:
        llm.close()
