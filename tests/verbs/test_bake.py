"""Baked files: what the unpatched library computes from them is what ours computes with blocks left out."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from support.adapters import lora_file, names_of
from support.matrix import bakes
from support.matrix.arch_files import Base, make, write
from support.matrix.architectures import untested_file
from support.matrix.bakes import MODELS
from support.tiny import blocks, random_model, with_mtp_head

from comparison.builds import Build
from comparison.oracle import expand, logits, skip, tensors

TOKENS = list(range(1, 41, 2))
EVERY = os.environ.get("LLAMA_SKIP_MATRIX") == "all"
# lists, computed patterns, leading blocks, blocks behind the trunk, refusals
FEW = [
    "afmoe-moe",
    "deepseek2-moe",
    "gemma3-dense",
    "gemma3-dense-computed",
    "gemma4",
    "jamba-dense",
    "minicpm-dense",
    "qwen35-dense-computed",
    "qwen35-dense-nextn",
    "rwkv6",
    "smollm3-dense",
    "step35",
]


def fields(path: Path) -> dict[str, object]:
    return {f.name: f.contents() for f in GGUFReader(path).fields.values() if f.name[:5] != "GGUF."}


def bake(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    command = "import sys; from llama_skip.cli import main; sys.exit(main(['bake', *sys.argv[1:]]))"
    return subprocess.run(
        [sys.executable, "-c", command, *map(str, args)],
        capture_output=True,
        text=True,
        **kwargs,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("spec", ["13,26", "0-2,28-29", "1-29+2"])
def test_the_unpatched_library_computes_the_same_from_the_baked_file(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int], tmp_path: Path, spec: str
) -> None:
    from llama_skip import bake_model

    baked = bake_model(smollm2, tmp_path / "baked.gguf", skip_layers=spec)
    expected = ours.worker.call(logits, smollm2, tokens, skip(spec))
    assert np.array_equal(stock.worker.call(logits, baked.path, tokens), expected)
    out = expand(spec)
    assert baked.blocks == [il for il in range(30) if il not in out]
    assert baked.n_bytes == os.path.getsize(baked.path)


def test_tensors_and_metadata_of_a_baked_file(small: Path, tmp_path: Path) -> None:
    from llama_skip import bake_model
    from llama_skip.files.identity import identify

    path = bake_model(small, tmp_path / "baked.gguf", skip_layers="0,2").path
    kept = [1, 3]
    old = {t.name: t for t in GGUFReader(small).tensors}
    new = GGUFReader(path)
    assert len(new.tensors) == len(old) - 22
    for t in new.tensors:
        assert t.data_offset % 32 == 0
        source = old[re.sub(r"^blk\.(\d+)", lambda m: f"blk.{kept[int(m[1])]}", t.name)]
        assert t.tensor_type == source.tensor_type and np.array_equal(t.data, source.data)
    before, after = fields(small), fields(path)
    about = identify(small)
    record = {k: after.pop(k) for k in list(after) if k.startswith("skip.bake.")}
    assert after == {**before, "qwen3.block_count": 2}
    assert record == {
        "skip.bake.version": 1,
        "skip.bake.model_id": about.model_id,
        "skip.bake.file_id": about.file_id,
        "skip.bake.name": "small.gguf",
        "skip.bake.layers": "0,2",
        "skip.bake.method": "given",
        "skip.bake.blocks": kept,
    }


@pytest.mark.parametrize("name", MODELS if EVERY else FEW)
def test_every_architecture_is_exact_or_refused(
    stock: Build, ours: Build, bases: dict[str, Base], tmp_path: Path, name: str
) -> None:
    row = bakes.check(stock, ours, bases, name, tmp_path, every=EVERY)
    assert row.text() in bakes.DOCS.read_text().splitlines(), (
        "docs/bake.md is stale, it says how it is written"
    )


def test_the_table_has_every_model_once_and_what_is_baked_is_in_it() -> None:
    from llama_skip import _core

    tested = {*_core.tested_architectures()}
    rows = [line.strip("| ").split(" | ") for line in bakes.DOCS.read_text().splitlines() if line[:2] == "| "]
    rows = [row for row in rows if row[0] != "architecture"]
    assert sorted(row[1] for row in rows) == MODELS
    assert {row[0] for row in rows if int(row[3])} <= tested
    refused = {row[0] for row in rows} - {row[0] for row in rows if int(row[3])}
    assert tested & refused == {"gemma3n", "gemma4", "minicpm3"}


def test_a_list_stands_for_a_pattern_that_new_numbers_would_change(
    stock: Build, bases: dict[str, Base], tmp_path: Path
) -> None:
    from llama_skip import bake_model

    model = make(stock, tmp_path, bases, "gemma3-dense")
    path = write(tmp_path / "model.gguf", model.arch, model.metadata, model.tensors)
    key = "gemma3.attention.sliding_window_pattern"
    metadata = [(k, 3, *types) if k == key else (k, v, *types) for k, v, *types in model.metadata]
    assert fields(path)[key] == [1, 0, 1, 0, 1]
    assert fields(bake_model(path, tmp_path / "list.gguf", skip_layers="2").path)[key] == [1, 0, 0, 1]
    period = [(k, v, t[0].UINT32 if k == key else t[0], None if k == key else t[1]) for k, v, *t in metadata]
    path = write(tmp_path / "model.gguf", model.arch, period, model.tensors)
    found = fields(bake_model(path, tmp_path / "period.gguf", skip_layers="1").path)
    assert found[key] == [True, False, True, True]
    # a period of 3 says the same of three blocks
    assert fields(bake_model(path, tmp_path / "period.gguf", skip_layers="3-4").path)[key] == 3


def test_blocks_behind_the_trunk_stay(stock: Build, ours: Build, small: Path, tmp_path: Path) -> None:
    from llama_skip import bake_model

    path = with_mtp_head(tmp_path / "mtp.gguf", small)
    baked = bake_model(path, tmp_path / "baked.gguf", skip_layers="1,4")
    assert baked.blocks == [0, 2, 3, 5, 6]
    found = fields(baked.path)
    assert found["glm4moe.block_count"] == 5 and found["glm4moe.leading_dense_block_count"] == 4
    assert any(t.name.startswith("blk.4.nextn.") for t in tensors(baked.path))
    expected = ours.worker.call(logits, path, TOKENS, skip("1,4"))
    assert np.array_equal(stock.worker.call(logits, baked.path, TOKENS), expected)


def test_a_plan_is_baked_and_recorded(small: Path, tmp_path: Path) -> None:
    from llama_skip import bake_model
    from llama_skip.files.identity import identify
    from llama_skip.plan.file import Plan, write_plan
    from llama_skip.plan.found import Found

    about = identify(small)
    plan = Plan(about, "1", found=Found("greedy"))
    write_plan(tmp_path / "plan.json", plan)
    for given in (plan, tmp_path / "plan.json"):
        baked = bake_model(small, tmp_path / "baked.gguf", plan=given)
        assert baked.note == "" and baked.skip_layers == "1"
        assert fields(baked.path)["skip.bake.method"] == "greedy"
    other = replace(plan, model=replace(about, file_id="0" * 16))
    assert "other weights" in bake_model(small, tmp_path / "baked.gguf", plan=other).note
    with pytest.raises(ValueError, match="the plan is about another model"):
        bake_model(
            small, tmp_path / "other.gguf", plan=replace(plan, model=replace(about, model_id="0" * 16))
        )
    assert not (tmp_path / "other.gguf").exists()


def test_scores_and_plans_of_the_source_are_not_in_the_baked_file(small: Path, tmp_path: Path) -> None:
    from llama_skip import annotate_model, bake_model
    from llama_skip.files.identity import identify
    from llama_skip.plan.file import Plan

    source = tmp_path / "source.gguf"
    annotate_model(small, plans={"small": Plan(identify(small), "1")}, output=source)
    found = fields(bake_model(source, tmp_path / "baked.gguf", skip_layers="2").path)
    assert not [key for key in found if key.startswith(("skip.plan.", "skip.score."))]


def test_a_split_model_becomes_one_file(stock: Build, ours: Build, small: Path, tmp_path: Path) -> None:
    from llama_skip import bake_model

    stock.run("llama-gguf-split", "--split", "--split-max-tensors", 20, small, tmp_path / "part")
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == 3
    baked = bake_model(parts[0], tmp_path / "baked.gguf", skip_layers="1")
    assert not [key for key in fields(baked.path) if key.startswith("split.")]
    expected = ours.worker.call(logits, small, TOKENS, skip("1"))
    assert np.array_equal(stock.worker.call(logits, baked.path, TOKENS), expected)
    with pytest.raises(ValueError, match="is one of the files that are read"):
        bake_model(parts[0], parts[2], skip_layers="1")


def test_the_importance_matrix_goes_with_the_blocks(
    stock: Build, ours: Build, tiny: Path, tmp_path: Path
) -> None:
    """Quantized with it, a baked file is what upstream's own pruning makes of the full model and matrix."""
    from llama_skip import bake_model

    text, full = tmp_path / "text.txt", tmp_path / "full.imatrix.gguf"
    text.write_text("The harbour lay still before the first boats came in. " * 60)
    done = ours.run("llama-imatrix", "-m", tiny, "-f", text, "-o", full, "-c", 64, "--chunks", 4, "-t", 1)
    assert done.returncode == 0, done.stderr[-2000:]
    baked = bake_model(tiny, tmp_path / "baked.gguf", skip_layers="1", imatrix=full)
    assert baked.imatrix == tmp_path / "baked.imatrix.gguf"
    assert fields(baked.imatrix) == fields(full)
    quantized = []
    for args in ((baked.imatrix, baked.path), (full, "--prune-layers", 1, tiny)):
        path = tmp_path / f"{len(quantized)}.gguf"
        done = stock.run("llama-quantize", "--imatrix", *args, path, "Q4_0", 1)
        assert done.returncode == 0, done.stderr[-2000:]
        quantized.append({t.name: t.data.tobytes() for t in GGUFReader(path).tensors})
    assert quantized[0] == quantized[1] and "blk.2.attn_q.weight" in quantized[0]

    done = ours.run("llama-quantize", "--imatrix", full, baked.path, tmp_path / "x.gguf", "Q4_0", 1)
    assert done.returncode != 0
    assert "baked without blocks 1, has not: llama-skip bake --imatrix" in done.stderr + done.stdout
    for wrong, reason in ((tiny, "not an importance matrix"), (text, "not a GGUF file")):
        with pytest.raises(ValueError, match=reason):
            bake_model(tiny, tmp_path / "y.gguf", skip_layers="1", imatrix=wrong)
    with pytest.raises(ValueError, match="of another model, it has blk"):
        bake_model(baked.path, tmp_path / "y.gguf", skip_layers="1", imatrix=full)
    assert not (tmp_path / "y.gguf").exists()
    before = full.read_bytes()
    for output in (full, tmp_path / "full.gguf"):
        with pytest.raises(ValueError, match="is one of the files that are read"):
            bake_model(tiny, output, skip_layers="1", imatrix=full)
    assert full.read_bytes() == before and not (tmp_path / "full.gguf").exists()


def test_an_adapter_on_a_baked_model_is_warned_of(ours: Build, smollm2: Path, tmp_path: Path) -> None:
    from llama_skip import bake_model

    baked = bake_model(smollm2, tmp_path / "baked.gguf", skip_layers="13").path
    lora = lora_file(smollm2, tmp_path / "lora.gguf", names_of([0], ["attn_q"]))
    for model, is_warned in ((baked, True), (smollm2, False)):
        done = ours.complete(model, "--lora", lora)
        assert ("baked without blocks 13: adapters" in done.stderr) == is_warned


def test_what_cannot_be_baked_is_refused_and_nothing_is_written(small: Path, tmp_path: Path) -> None:
    from llama_skip import bake_model

    output = tmp_path / "baked.gguf"
    for kwargs, words in (
        ({"skip_layers": "none"}, "nothing to bake"),
        ({"skip_layers": []}, "nothing to bake"),
        ({"skip_layers": "9"}, "block 9 is out of range"),
        ({"skip_layers": "0-3"}, "skip_layers"),
        ({"skip_layers": "1", "skip_scale": 0.5}, "scaled by 1:0.5 cannot be baked"),
        ({}, "either a plan or skip_layers"),
    ):
        with pytest.raises(ValueError, match=words):
            bake_model(small, output, **kwargs)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is one of the files that are read"):
        bake_model(small, small, skip_layers="1")
    link = tmp_path / "link.gguf"
    link.symlink_to(small)
    with pytest.raises(ValueError, match="is one of the files that are read"):
        bake_model(small, link, skip_layers="1")
    with pytest.raises(FileNotFoundError):
        bake_model(tmp_path / "absent.gguf", output, skip_layers="1")
    with pytest.raises(FileNotFoundError):
        bake_model(small, tmp_path / "absent" / "baked.gguf", skip_layers="1")
    assert list(tmp_path.iterdir()) == [link]
    assert bake_model(small, output, skip_layers="1", skip_scale=1.0).blocks == [0, 2, 3]


def test_an_architecture_that_was_not_compared_is_refused(tmp_path: Path) -> None:
    from llama_skip.bake.entries import baked_entries
    from llama_skip.files.gguf import read_gguf

    path = untested_file(tmp_path / "untested.gguf")
    with pytest.raises(ValueError, match=r"'dflash': .* never tested"):
        baked_entries(read_gguf(path), {1})


@pytest.mark.parametrize(("n", "out"), [(46, "3"), (47, "3")])
def test_a_model_that_is_recognised_by_its_number_of_blocks(
    small: Path, tmp_path: Path, n: int, out: str
) -> None:
    from llama_skip import bake_model

    shapes = blocks(n, post_norm="post_attention_norm")
    shapes = {
        name: shape for name, shape in shapes.items() if "_q_norm" not in name and "_k_norm" not in name
    }
    shapes |= {f"blk.{il}.{name}.weight": (64,) for il in range(n) for name in ("ffn_norm", "post_ffw_norm")}
    path = random_model(tmp_path / "gemma2.gguf", small, "gemma2", n, shapes, {})
    with pytest.raises(ValueError, match="by their number of blocks"):
        bake_model(path, tmp_path / "baked.gguf", skip_layers=out)


def test_a_full_disk_leaves_what_was_there(smollm2: Path, tmp_path: Path) -> None:
    output = tmp_path / "baked.gguf"
    output.write_bytes(b"before")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    done = bake(smollm2, "--skip-layers", "3", "-o", output, preexec_fn=limit)
    assert done.returncode == 1 and f"error: {output}: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert output.read_bytes() == b"before" and list(tmp_path.iterdir()) == [output]


def test_an_interrupt_leaves_what_was_there(smollm2: Path, tmp_path: Path) -> None:
    from llama_skip.files.gguf import read_gguf, write_gguf
    from llama_skip.files.store import replacing

    output = tmp_path / "copy.gguf"
    output.write_bytes(b"before")

    class Interrupt:
        steps = 0

        def step(self) -> None:
            self.steps += 1
            if self.steps == 3:
                raise KeyboardInterrupt

        def say(self, text: str) -> None:
            raise AssertionError(text)

    gguf = read_gguf(smollm2)
    with pytest.raises(KeyboardInterrupt), replacing(output) as file:
        write_gguf(file, gguf.entries.values(), gguf.tensors, gguf.alignment, Interrupt())
    assert output.read_bytes() == b"before" and list(tmp_path.iterdir()) == [output]


def test_the_command(small: Path, tmp_path: Path) -> None:
    output = tmp_path / "baked.gguf"
    done = bake(small, "--skip-layers", "1,2", "-o", output)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{output}: 2 blocks, without 1-2, ")
    assert fields(output)["qwen3.block_count"] == 2
    for args, code, words in (
        ([small, "-o", output], 2, "either --plan or --skip-layers"),
        ([small, "--skip-layers", "7", "-o", output], 1, "block 7 is out of range"),
        ([tmp_path / "absent.gguf", "--skip-layers", "1", "-o", output], 1, "absent.gguf"),
    ):
        done = bake(*args)
        assert done.returncode == code and words in done.stderr and done.stdout == ""
        assert "Traceback" not in done.stderr


def test_files_that_are_no_models(smollm2: Path, tmp_path: Path) -> None:
    from llama_skip.files.gguf import read_gguf

    data = smollm2.read_bytes()
    for name, content in (
        ("empty", b""),
        ("text", b"GGML" + data[4:100]),
        ("head", data[:5000]),
        ("tensors", data[:-1000]),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a GGUF file, or cut short"):
            read_gguf(path)


def test_a_file_that_becomes_shorter_while_it_is_read(small: Path, tmp_path: Path) -> None:
    from llama_skip.files.gguf import read_gguf, write_gguf
    from llama_skip.progress import progress

    model, output = tmp_path / "model.gguf", tmp_path / "copy.gguf"
    model.write_bytes(small.read_bytes())
    gguf = read_gguf(model)
    last = gguf.tensors[-1]
    for size in (last.offset + last.span - 1, last.offset, last.offset - 1):
        os.truncate(model, size)
        with (
            pytest.raises(OSError, match=r"model\.gguf became shorter while it was read"),
            progress(0, shown=False) as bar,
            output.open("wb") as file,
        ):
            write_gguf(file, gguf.entries.values(), gguf.tensors, gguf.alignment, bar)


def test_reading_and_writing_a_model_gives_the_same_bytes(smollm2: Path, tmp_path: Path) -> None:
    from llama_skip.files.gguf import read_gguf, write_gguf
    from llama_skip.progress import progress

    gguf = read_gguf(smollm2)
    with progress(0, shown=False) as bar, (tmp_path / "copy.gguf").open("wb") as file:
        write_gguf(file, gguf.entries.values(), gguf.tensors, gguf.alignment, bar)
    assert (tmp_path / "copy.gguf").read_bytes() == smollm2.read_bytes()
