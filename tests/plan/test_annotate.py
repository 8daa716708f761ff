"""Scores and plans as metadata: in a copy of the model, in a file beside it, through llama-quantize."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType
from support.tiny import blocks, random_model

from comparison.builds import Build
from comparison.oracle import logits


def fields(path: Path) -> dict[str, Any]:
    return {f.name: f.contents() for f in GGUFReader(path).fields.values() if f.name[:5] != "GGUF."}


def annotate(*args: object) -> subprocess.CompletedProcess[str]:
    command = "import sys; from llama_skip.cli import main; sys.exit(main(['annotate', *sys.argv[1:]]))"
    return subprocess.run([sys.executable, "-c", command, *map(str, args)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def about(small: Path) -> Any:
    from llama_skip.files.identity import identify

    return identify(small)


@pytest.fixture
def score(about: Any) -> Any:
    """A score of the small model, with numbers that float32 holds and one that is not known."""
    from llama_skip.files.identity import TextInfo
    from llama_skip.score.file import BlockScore, Score, Step

    blocks = [BlockScore(il, influence=0.25 * il, perplexity=8.5 + il, kld=0.5 * il) for il in range(4)]
    blocks[0] = BlockScore(0, refused="not possible")
    path = [Step(block, 9.0 + i, 0.1, 0.75 + i, 0.01, 0.5, 64, 1000 * i) for i, block in enumerate((2, 1))]
    text = TextInfo("file", "wiki.txt", "0" * 64, 128, 32, 4, 64)
    return Score(about, text, {}, True, 8.0, 0.1, blocks, [], path)


def plan(about: Any, layers: str = "1-2", **found: Any) -> Any:
    from llama_skip.plan.file import Plan
    from llama_skip.plan.found import Found

    return Plan(about, layers, found=Found("greedy", **found))


def test_what_a_copy_says(small: Path, about: Any, score: Any, tmp_path: Path) -> None:
    from llama_skip import annotate_model

    plans = {
        "fast": plan(about, kld=0.5, perplexity=9.25),
        "with_scale": replace(plan(about), skip_scale="0.5"),
    }
    done = annotate_model(small, score=score, plans=plans, output=tmp_path / "copy.gguf")
    assert (done.plans, done.has_score, done.notes) == (["fast", "with_scale"], True, [])
    found = fields(done.path)
    ids = {"version": 1, "model_id": about.model_id, "file_id": about.file_id}
    expected = {
        **{f"skip.{of}.{k}": v for of in ("score", "plan.fast", "plan.with_scale") for k, v in ids.items()},
        "skip.score.metric": "kld+surprisal",
        "skip.score.dataset": "wiki.txt",
        "skip.score.n_tokens": 128,
        "skip.score.n_ctx": 32,
        "skip.score.perplexity": 8.0,
        "skip.score.path": [2, 1],
        "skip.score.path.perplexity": [9.0, 10.0],
        "skip.score.path.kld": [0.75, 1.75],
        "skip.plan.fast.layers": "1-2",
        "skip.plan.fast.method": "greedy",
        "skip.plan.fast.kld": 0.5,
        "skip.plan.fast.perplexity": 9.25,
        "skip.plan.with_scale.layers": "1-2",
        "skip.plan.with_scale.scale": "0.5",
        "skip.plan.with_scale.method": "greedy",
    }
    per_block = {key: found.pop(f"skip.score.block.{key}") for key in ("influence", "perplexity", "kld")}
    assert all(math.isnan(values[0]) for values in per_block.values())
    assert [values[1:] for values in per_block.values()] == [
        [0.25, 0.5, 0.75],
        [9.5, 10.5, 11.5],
        [0.5, 1.0, 1.5],
    ]
    assert found == {**fields(small), **expected}
    types = {f.name: f.types for f in GGUFReader(done.path).fields.values()}
    assert types["skip.score.path"] == [GGUFValueType.ARRAY, GGUFValueType.INT32]
    assert types["skip.score.block.kld"] == [GGUFValueType.ARRAY, GGUFValueType.FLOAT32]
    assert types["skip.score.version"] == types["skip.score.n_tokens"] == [GGUFValueType.UINT32]


def test_a_copy_has_the_same_tensors_and_computes_the_same(
    stock: Build, small: Path, about: Any, tmp_path: Path
) -> None:
    from llama_skip import annotate_model
    from llama_skip.files.identity import identify

    path = annotate_model(small, plans={"p": plan(about)}, output=tmp_path / "copy.gguf").path
    old, new = GGUFReader(small).tensors, GGUFReader(path).tensors
    assert [t.name for t in new] == [t.name for t in old]
    for a, b in zip(old, new, strict=True):
        assert a.tensor_type == b.tensor_type and np.array_equal(a.data, b.data)
        assert b.data_offset % 32 == 0
    tokens = [1, 5, 9, 7, 3]
    expected = stock.worker.call(logits, small, tokens)
    assert np.array_equal(stock.worker.call(logits, path, tokens), expected)
    assert replace(identify(path), name=small.name) == about


@pytest.mark.parametrize("build", ["stock", "ours"])
def test_the_keys_survive_quantization(
    request: pytest.FixtureRequest, build: str, small: Path, about: Any, score: Any, tmp_path: Path
) -> None:
    from llama_skip import annotate_model
    from llama_skip.files.identity import identify

    source = annotate_model(
        small, score=score, plans={"p": plan(about)}, output=tmp_path / "source.gguf"
    ).path
    quantized = tmp_path / "quantized.gguf"
    done = request.getfixturevalue(build).run("llama-quantize", source, quantized, "Q8_0", 1)
    assert done.returncode == 0, done.stderr
    before, after = (
        {k: repr(v) for k, v in fields(p).items() if k[:5] == "skip."} for p in (source, quantized)
    )
    assert len(before) == 19 and after == before
    # and what they are about is still this model, with other weights
    assert identify(quantized).model_id == about.model_id
    assert identify(quantized).file_id != about.file_id
    notes = annotate_model(quantized, plans={"q": plan(about)}, output=tmp_path / "more.gguf").notes
    assert (
        len(notes) == 1
        and notes[0].startswith("plan q was made with small.gguf")
        and "other weights" in notes[0]
    )


def test_a_sidecar_keeps_what_it_has(small: Path, about: Any, score: Any, tmp_path: Path) -> None:
    from llama_skip import annotate_model
    from llama_skip.plan.annotate import sidecar_path

    model = tmp_path / "model.gguf"
    model.symlink_to(small)
    beside = tmp_path / "model.skip.gguf"
    assert sidecar_path(model) == beside
    done = annotate_model(model, plans={"a": plan(about), "b": plan(about, "3")})
    assert done.path == beside and not done.has_score
    assert GGUFReader(beside).tensors == []
    assert fields(beside)["general.architecture"] == "qwen3"
    done = annotate_model(model, score=score, plans={"a": plan(about, "2", kld=0.5)})
    assert done.plans == ["a", "b"] and done.has_score
    found = fields(beside)
    assert (found["skip.plan.a.layers"], found["skip.plan.b.layers"]) == ("2", "3")
    done = annotate_model(model, plans={"a": plan(about)})
    found = fields(beside)
    assert done.has_score and "skip.plan.a.kld" not in found and found["skip.score.path"] == [2, 1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.gguf", "model.skip.gguf"]


def test_a_sidecar_that_nothing_reads_is_noted(small: Path, about: Any, score: Any, tmp_path: Path) -> None:
    from llama_skip import annotate_model
    from llama_skip.skipset import resolve

    plans = {name: plan(about, "2") for name in ("a", "b")}
    model = annotate_model(small, plans=plans, output=tmp_path / "model.gguf").path
    assert annotate_model(model, score=score).notes == []
    assert annotate_model(model, plans={"c": plan(about)}).notes == []
    (note,) = annotate_model(model, score=score, plans={"c": plan(about), "b": plan(about, "3")}).notes
    assert note.startswith("model.gguf has @b in its own metadata, which comes first")
    assert resolve(model, "@b", "")[0] == [2]
    annotate_model(model, score=score, output=model)
    (note,) = annotate_model(model, score=replace(score, path=score.path[::-1]), plans=plans).notes
    assert note.startswith("model.gguf has a score, @a, @b in its own metadata")
    assert resolve(model, "auto:1", "")[0] == [2]
    # what is written into a copy is read
    assert annotate_model(model, score=score, plans=plans, output=tmp_path / "copy.gguf").notes == []


def test_what_is_refused(small: Path, about: Any, score: Any, tmp_path: Path) -> None:
    from llama_skip import annotate_model
    from llama_skip.files.identity import identify

    output = tmp_path / "copy.gguf"
    other = replace(about, model_id="0" * 16)
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "name a score, or a plan"),
        ({"score": replace(score, model=other)}, "the score is about another model"),
        ({"plans": {"p": replace(plan(about), model=other)}}, "plan p is about another model"),
        ({"score": replace(score, complete=False)}, "not complete"),
        ({"score": replace(score, blocks=score.blocks[:2])}, "the score has 2 blocks, its model has 4"),
        ({"plans": {"p": plan(about, "9")}}, "block 9 is out of range"),
        *(({"plans": {name: plan(about)}}, "plan name") for name in ("", "6", "a.b", "a/b", "a b", "25%")),
    ]
    for kwargs, words in cases:
        with pytest.raises(ValueError, match=words):
            annotate_model(small, output=output, **kwargs)
    with pytest.raises(FileNotFoundError):
        annotate_model(tmp_path / "absent.gguf", score=score, output=output)
    with pytest.raises(FileNotFoundError):
        annotate_model(small, score=tmp_path / "absent.json", output=output)
    assert list(tmp_path.iterdir()) == []

    model = tmp_path / "model.gguf"
    random_model(model, small, "qwen3", 3, blocks(3, post_norm="ffn_norm"), {})
    annotate_model(model, plans={"p": plan(identify(model))})
    model.unlink()
    model.symlink_to(small)
    before = (tmp_path / "model.skip.gguf").read_bytes()
    with pytest.raises(ValueError, match=r"model\.skip\.gguf: skip\.plan\.p\.model_id is another model's"):
        annotate_model(model, score=score)
    assert (tmp_path / "model.skip.gguf").read_bytes() == before


def test_a_split_model_becomes_one_file_or_gets_a_sidecar(
    stock: Build, small: Path, about: Any, tmp_path: Path
) -> None:
    from llama_skip import annotate_model

    stock.run("llama-gguf-split", "--split", "--split-max-tensors", 20, small, tmp_path / "part")
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == 3
    chosen = {"p": plan(about)}
    path = annotate_model(parts[0], plans=chosen, output=tmp_path / "whole.gguf").path
    assert [t.name for t in GGUFReader(path).tensors] == [t.name for t in GGUFReader(small).tensors]
    assert not [key for key in fields(path) if key.startswith("split.")]
    assert annotate_model(parts[0], plans=chosen).path.name == "part-00001-of-00003.skip.gguf"
    with pytest.raises(ValueError, match="a file of the split model"):
        annotate_model(parts[0], plans=chosen, output=parts[2])
    before = sorted(tmp_path.iterdir())
    with pytest.raises((ValueError, RuntimeError)):
        annotate_model(parts[1], plans=chosen, output=tmp_path / "other.gguf")
    assert sorted(tmp_path.iterdir()) == before


def test_the_command(small: Path, about: Any, score: Any, tmp_path: Path) -> None:
    from llama_skip.plan.file import write_plan
    from llama_skip.score.file import write_score

    model, scores, chosen = tmp_path / "model.gguf", tmp_path / "score.json", tmp_path / "plan.json"
    model.symlink_to(small)
    write_score(scores, score)
    write_plan(chosen, plan(about))
    done = annotate(model, "--score", scores, "--plan", f"small={chosen}", "--sidecar")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'model.skip.gguf'}: a score, @small\n"
    assert fields(tmp_path / "model.skip.gguf")["skip.plan.small.layers"] == "1-2"
    for args, code, words in (
        (["--sidecar"], 2, "name a --score, or a --plan"),
        (["--score", scores], 2, "--output"),
        (["--score", scores, "--sidecar", "-o", "x.gguf"], 2, "not allowed"),
        (["--plan", chosen, "--sidecar"], 2, "expected NAME=PLAN"),
        (["--plan", f"7={chosen}", "--sidecar"], 1, "plan name '7'"),
        (["--score", chosen, "--sidecar"], 1, "expected a file of format llama-skip-score"),
        (["--score", scores, "-o", tmp_path / "absent" / "x.gguf"], 1, "No such file or directory"),
    ):
        done = annotate(model, *args)
        assert done.returncode == code and words in done.stderr and done.stdout == ""
        assert "Traceback" not in done.stderr


def test_what_was_written_is_what_sets_are_read_from(
    small: Path, about: Any, score: Any, tmp_path: Path
) -> None:
    from llama_skip import annotate_model, bake_model
    from llama_skip.skipset import resolve

    model, plans = (
        tmp_path / "model.gguf",
        {"two": plan(about), "scaled": replace(plan(about), skip_scale="0.5")},
    )
    model.symlink_to(small)
    annotate_model(model, score=score, plans=plans)
    copy = annotate_model(small, score=score, plans=plans, output=tmp_path / "copy.gguf").path
    for path in (model, copy):
        assert resolve(path, "auto:1", "") == ([2], "")
        assert resolve(path, "auto:50%", "") == ([1, 2], "")
        assert resolve(path, "@two", "") == ([1, 2], "")
        assert resolve(path, "@scaled", "") == ([1, 2], "1:0.5")
        with pytest.raises(ValueError, match="two"):
            resolve(path, "@three", "")
    assert bake_model(copy, tmp_path / "baked.gguf", skip_layers="auto:1").skip_layers == "2"
