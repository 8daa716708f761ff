"""Control vectors name blocks of the file; the stream meets their directions at blocks left out as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from support.adapters import declare, rows, set_cvec
from support.matrix.arch_files import generated_one

from comparison.builds import Build
from comparison.libllama import Library, LlamaError
from comparison.oracle import expand, rewritten_copy, skip, zeroed_copy

N_EMBD = 576


@pytest.fixture(scope="module")
def directions() -> np.ndarray:
    return np.random.default_rng(7).normal(0, 0.3, (29, N_EMBD)).astype(np.float32)


@pytest.mark.parametrize(
    ("spec", "first", "last"),
    [
        ("13-14,25", 1, 30),
        ("13-14,25", 13, 13),
        ("13-14,25", 14, 25),
        ("0-3", 1, 29),
        ("0-3", 3, 5),
        ("0,28-29", 1, 29),
        ("27-29", 28, 28),
        ("1-29+2", 6, 20),
    ],
)
def test_a_control_vector_meets_the_stream_at_blocks_left_out_too(
    stock: Build,
    ours: Build,
    smollm2: Path,
    tokens: list[int],
    zeroed: Any,
    directions: np.ndarray,
    spec: str,
    first: int,
    last: int,
) -> None:
    cvec = (directions, first, last)
    expected, _ = stock.worker.call(rows, zeroed(expand(spec)), tokens[:20], cvec=cvec)
    found, _ = ours.worker.call(rows, smollm2, tokens[:20], skip(spec), cvec=cvec)
    assert np.array_equal(found, expected)
    masked, _ = ours.worker.call(rows, smollm2, tokens[:20], mask=spec, cvec=cvec)
    assert np.array_equal(masked, expected)
    assert not np.array_equal(found, ours.worker.call(rows, smollm2, tokens[:20], skip(spec))[0])


@pytest.mark.parametrize(("spec", "behind"), [("13-14", 15), ("0-2", 3)])
def test_directions_come_behind_the_scale_of_their_gap(
    stock: Build,
    ours: Build,
    smollm2: Path,
    tokens: list[int],
    zeroed: Any,
    directions: np.ndarray,
    spec: str,
    behind: int,
) -> None:
    out = expand(spec)
    _, plain = stock.worker.call(rows, zeroed(out), tokens[:20], tap=True)
    cvec = (directions, max(out[0], 1), out[-1])
    _, found = ours.worker.call(rows, smollm2, tokens[:20], skip(spec, "0.7"), cvec=cvec, tap=True)
    expected = np.float32(0.7) * plain[f"norm-{behind}"]
    for il in out:
        if il > 0:  # upstream has no direction at block 0
            expected = expected + directions[il - 1]
    assert np.array_equal(found[f"norm-{behind}"], expected)


@pytest.mark.parametrize(
    "arch",
    [
        "gemma3",
        "command-r",
        "jais2",
        "mamba2",
        "jamba",
        "falcon-h1",
        "lfm2",
        "granitehybrid",
        "glm4moe",
        "gpt2",
    ],
)
def test_a_control_vector_where_the_last_block_is_left_out(
    stock: Build, ours: Build, tmp_path: Path, arch: str
) -> None:
    """Its place is then behind the selection of output rows, in sequential, parallel and recurrent blocks."""
    model = generated_one(stock, arch, tmp_path)
    fields = GGUFReader(model).fields
    last, n_embd = (int(fields[f"{arch}.{key}"].contents()) for key in ("block_count", "embedding_length"))
    last -= 1
    cvec = (np.random.default_rng(3).normal(0, 0.5, (last, n_embd)).astype(np.float32), 1, last)
    tokens = list(range(3, 15))
    zeroed = zeroed_copy(model, tmp_path / "zeroed.gguf", [last])
    expected, _ = stock.worker.call(rows, zeroed, tokens, cvec=cvec)
    found, _ = ours.worker.call(rows, model, tokens, skip(str(last)), cvec=cvec)
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, ours.worker.call(rows, model, tokens, skip(str(last)))[0])


def test_directions_that_only_some_blocks_apply(stock: Build, ours: Build, tmp_path: Path) -> None:
    """Upstream's Nemotron-H applies a control vector behind feed-forward blocks only, here block 2."""
    model = generated_one(stock, "nemotron_h", tmp_path)
    directions = np.full((2, 256), 0.5, np.float32)
    tokens = list(range(3, 15))
    reason = "'nemotron_h' applies a control vector behind its feed-forward blocks only: .* left out, 1"
    with pytest.raises(LlamaError, match=reason):
        ours.worker.call(rows, model, tokens, skip("1"), cvec=(directions, 1, 2))
    zeroed = zeroed_copy(model, tmp_path / "zeroed.gguf", [1])
    expected, _ = stock.worker.call(rows, zeroed, tokens, cvec=(directions, 2, 2))
    found, _ = ours.worker.call(rows, model, tokens, skip("1"), cvec=(directions, 2, 2))
    assert np.array_equal(found, expected)


@pytest.fixture(scope="module")
def minicpm(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as an architecture of the same tensors that scales the embeddings before block 0."""
    copy = tmp_path_factory.mktemp("minicpm") / "minicpm.gguf"
    return rewritten_copy(smollm2, copy, lambda name, data: {name: data}, arch="minicpm")


def mask_under_cvec(
    lib: Library, path: Path, tokens: list[int], cvec: tuple[np.ndarray, int, int]
) -> list[str]:
    """What a context says to masks while a control vector is set, and to the control vector under a mask."""
    declare(lib)
    model = lib.model(path)
    ctx = model.context()
    set_cvec(ctx, *cvec)
    facts = []
    for mask in ("0-2", "0", "5-6"):
        try:
            ctx.mask(mask)
            facts.append(f"taken, {ctx.masked()}")
        except LlamaError as error:
            facts.append(f"{error}, {ctx.masked()}")
    ctx.decode(tokens)
    ctx.close()
    model.close()
    return facts


def test_directions_without_a_place_are_refused(
    ours: Build, minicpm: Path, tokens: list[int], directions: np.ndarray
) -> None:
    """Before block 0 a direction can be added only where nothing else follows the embeddings."""
    reason = "directions at blocks 1-2 have no place in architecture 'minicpm' while blocks 0-2 are left out"
    with pytest.raises(LlamaError, match=reason):
        ours.worker.call(rows, minicpm, tokens[:4], skip("0-2"), cvec=(directions, 1, 29))
    ours.worker.call(rows, minicpm, tokens[:4], skip("0-2"), cvec=(directions, 3, 29))
    ours.worker.call(rows, minicpm, tokens[:4], skip("0"), cvec=(directions, 1, 29))
    facts = ours.worker.call(mask_under_cvec, minicpm, tokens[:4], (directions, 2, 5))
    refused = f"mask: the control vector's {reason.replace('blocks 1-2', 'blocks 2')}"
    assert facts[0].startswith(refused) and facts[0].endswith(", []")
    assert facts[1:] == ["taken, [0]", "taken, [5, 6]"]


def test_a_tool_refuses_them_before_it_loads(ours: Build, minicpm: Path, tmp_path: Path) -> None:
    """Upstream's tools go on without a control vector that the context does not take."""
    writer = GGUFWriter(tmp_path / "cvec.gguf", "controlvector")
    for il in (1, 2, 29):
        writer.add_tensor(f"direction.{il}", np.full(N_EMBD, 0.1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    args = ("-m", minicpm, "-no-cnv", "-n", 1, "-p", "Once", "-t", 1, "--skip-layers", "0-2")
    cvec = ("--control-vector", tmp_path / "cvec.gguf")
    done = ours.run("llama-completion", *args, *cvec)
    assert done.returncode > 0
    reason = "error: the control vector's directions at blocks 1-2 have no place in architecture 'minicpm'"
    assert done.stderr.startswith(reason) and done.stderr.count("\n") == 1
    done = ours.run("llama-completion", *args, *cvec, "--control-vector-layer-range", 3, 29)
    assert done.returncode == 0, done.stderr[-3000:]
