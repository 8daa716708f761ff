"""Every architecture: bit for bit what the unpatched library computes without the blocks, or refused with
a reason.

By default a few sets of each model; LLAMA_SKIP_MATRIX=all takes every set, some minutes more.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from support.adapters import rows
from support.matrix import architectures
from support.matrix.arch_files import Base, make, write
from support.matrix.arch_oracle import zeroed
from support.matrix.arch_recipes import GENERATED
from support.matrix.arch_run import images
from support.matrix.architectures import DOCS, MODELS, TESTED, arch_names, check, header_of

from comparison.builds import Build
from comparison.libllama import Library, LlamaError, override_array

EVERY = os.environ.get("LLAMA_SKIP_MATRIX") == "all"


def documented() -> list[str]:
    return [line for line in DOCS.read_text().splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("name", MODELS)
def test_blocks_left_out_of(
    stock: Build, ours: Build, bases: dict[str, Base], tmp_path: Path, name: str
) -> None:
    row = check(stock, ours, bases, name, tmp_path, every=EVERY)
    for path in tmp_path.glob("*.gguf"):
        path.unlink()
    assert row.text() in documented(), "docs/architectures.md is stale, its first line says how it is written"


def test_the_generator_writes_the_models_of_the_matrix(bases: dict[str, Base]) -> None:
    assert sorted(bases) == sorted(GENERATED)


def test_the_table_has_every_model_once() -> None:
    assert sorted(line.split(" | ")[1] for line in documented()) == MODELS


def test_the_library_and_the_table_have_the_same_architectures(ours: Build) -> None:
    rows = [line.strip("| ").split(" | ") for line in documented()]
    whole = {arch for arch, *_, refused in rows if refused.startswith("all: ")}
    tested = {arch for arch, *_ in rows} - whole
    assert TESTED.read_text() == header_of(tested)
    text = " ".join(DOCS.read_text().split())
    untested = re.search(r"untested and need `--skip-untested`: ([^.]*)\.", text)
    assert untested
    known = set(ours.worker.call(arch_names))
    assert set(untested[1].split(", ")) == known - tested - whole
    assert len(known) > 140


def refusal(lib: Library, path: Path, overrides: dict[str, str | bool]) -> str:
    array = override_array(overrides)
    done = lib.c.llama_skip_check_overrides(str(path).encode(), array)
    return "" if done else str(lib.c.llama_skip_error().decode())


def test_an_untested_architecture_needs_the_word(ours: Build, tmp_path: Path) -> None:
    path = architectures.untested_file(tmp_path / "untested.gguf")
    said = ours.worker.call(refusal, path, {"skip.layers": "1"})
    assert "'dflash'" in said and "--skip-untested" in said and "skip.untested" in said
    assert ours.worker.call(refusal, path, {"skip.layers": "1", "skip.untested": True}) == ""
    assert ours.worker.call(refusal, path, {"skip.layers": "1", "skip.untested": False}) == said
    assert "bool" in ours.worker.call(refusal, path, {"skip.layers": "1", "skip.untested": "yes"})
    flag, override = ["--skip-layers", "1"], ["--override-kv", "skip.layers=str:1"]
    allowed = ["--override-kv", "skip.layers=str:1,skip.untested=bool:true"]
    env = {"LLAMA_ARG_SKIP_UNTESTED": "1"}

    def says(args: list[str], env: dict[str, str] | None = None) -> str:
        return ours.run("llama-completion", "-m", path, *args, env=env or {}).stderr

    for args in (flag, override):
        assert "'dflash' has not been tested" in says(args)
    for said in (
        says([*flag, "--skip-untested"]),
        says([*override, "--skip-untested"]),
        says(allowed),
        says(flag, env),
    ):
        assert "has not been tested" not in said


def decode_images(lib: Library, path: Path, overrides: dict[str, str]) -> np.ndarray | str:
    try:
        return images(lib, path, overrides)
    except LlamaError as err:
        return str(err)


def test_images_need_the_blocks_that_their_features_are_added_to(
    stock: Build, ours: Build, bases: dict[str, Base], tmp_path: Path
) -> None:
    model = make(stock, tmp_path, bases, "qwen3vl-deepstack")
    path = write(tmp_path / "model.gguf", model.arch, model.metadata, model.tensors)
    whole = stock.worker.call(decode_images, path, {})
    assert np.isfinite(whole).all()
    for block in (0, 1):
        said = ours.worker.call(decode_images, path, {"skip.layers": str(block)})
        assert isinstance(said, str) and f"without block {block}" in said
    expected = stock.worker.call(decode_images, zeroed(model, tmp_path / "zeroed.gguf", [3]), {})
    found = ours.worker.call(decode_images, path, {"skip.layers": "3"})
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, whole)


@pytest.mark.parametrize(("name", "out"), [("gemma4", [3, 4]), ("rwkv6", [4, 5, 6])])
def test_directions_of_a_control_vector_come_behind_the_factor_of_their_block(
    stock: Build, ours: Build, bases: dict[str, Base], tmp_path: Path, name: str, out: list[int]
) -> None:
    model = make(stock, tmp_path, bases, name)
    path = write(tmp_path / "model.gguf", model.arch, model.metadata, model.tensors)
    n_embd = model.value("embedding_length")
    cvec = (
        np.random.default_rng(3).normal(0.0, 1.0, (model.n_layer, n_embd)).astype(np.float32),
        1,
        model.n_layer,
    )
    tokens = [5, 9, 7, 3, 11]
    expected, _ = stock.worker.call(rows, zeroed(model, tmp_path / "zeroed.gguf", out), tokens, cvec=cvec)
    spec = ",".join(map(str, out))
    assert np.array_equal(ours.worker.call(rows, path, tokens, {"skip.layers": spec}, cvec=cvec)[0], expected)
    assert np.array_equal(ours.worker.call(rows, path, tokens, mask=spec, cvec=cvec)[0], expected)
    assert not np.array_equal(ours.worker.call(rows, path, tokens, {"skip.layers": spec})[0], expected)
