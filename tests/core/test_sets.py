"""A set left out at load gives the logits of a model in which these blocks do nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comparison.builds import Build
from comparison.libllama import Library, Override
from comparison.oracle import expand, left_out, logits, skip, tensors

SETS = {
    "13-14,25": "13-14,25",
    "first": "0",
    "last": "29",
    "two adjacent": "6-7",
    "first two and last two": "0-1,28-29",
    "every second": "0-29+2",
    "every other second": "1-29+2",
    "all but one in the middle": "0-10,12-29",
    "all but the first": "1-29",
    "all but the last": "0-28",
}


@pytest.mark.parametrize("name", SETS)
def test_logits_are_the_zeroed_files_on_the_unpatched_library(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int], zeroed: Any, name: str
) -> None:
    spec = SETS[name]
    file = zeroed(expand(spec))
    for flash in ("off", "on"):
        expected = stock.worker.call(logits, file, tokens, flash=flash)
        assert np.array_equal(ours.worker.call(logits, smollm2, tokens, skip(spec), flash=flash), expected)
    # the oracle itself is not the full model
    assert not np.array_equal(expected, stock.worker.call(logits, smollm2, tokens, flash="on"))


def test_logits_are_the_pruned_files_on_the_unpatched_library(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int], tmp_path: Path
) -> None:
    pruned = tmp_path / "pruned.gguf"
    done = stock.run("llama-quantize", "--prune-layers", "13,14,25", smollm2, pruned, "COPY")
    assert done.returncode == 0, done.stderr
    assert {t.block for t in tensors(pruned)} == {None, *range(27)}
    for flash in ("off", "on"):
        expected = stock.worker.call(logits, pruned, tokens, flash=flash)
        assert np.array_equal(
            ours.worker.call(logits, smollm2, tokens, skip("13-14,25"), flash=flash), expected
        )


def sizes(lib: Library, path: Path, overrides: Override, **params: Any) -> dict[str, Any]:
    model = lib.model(path, overrides, **params)
    c, n_layer = lib.c, lib.c.llama_model_n_layer(model.p)
    result = {
        "size": c.llama_model_size(model.p),
        "n_params": c.llama_model_n_params(model.p),
        "n_layer": n_layer,
        "n_skipped": c.llama_model_n_skipped(model.p),
        "skipped_size": c.llama_model_skipped_size(model.p),
        "skipped": [il for il in range(-2, n_layer + 2) if c.llama_model_is_skipped(model.p, il)],
        "layers": c.llama_model_skip_layers(model.p).decode(),
        "log": "".join(lib.log),
    }
    model.close()
    return result


@pytest.mark.parametrize(
    "params", [{"load_mode": "mmap"}, {"load_mode": "none"}, {"no_alloc": True}], ids=str
)
@pytest.mark.parametrize(
    ("spec", "counts", "kv"),
    [("13-14,25", "", 3), ("13-14,25,3-5:attn,7:ffn,9:ffn", " (3 blocks, 3 attentions, 2 feed-forwards)", 6)],
)
def test_sizes_are_those_of_what_is_loaded(
    ours: Build, smollm2: Path, params: dict[str, Any], spec: str, counts: str, kv: int
) -> None:
    if params.get("no_alloc"):
        params = {**params, "load_mode": "none"}
    out = [13, 14, 25]
    gone = left_out(smollm2, spec)
    kept = [t for t in tensors(smollm2) if t not in gone]
    found = ours.worker.call(
        sizes, smollm2, skip(spec.replace("13-14,25", "25;13-14,14") + ",25:ffn"), **params
    )
    assert found["size"] == sum(t.size for t in kept)
    assert found["n_params"] == sum(int(np.prod(t.shape)) for t in kept)
    assert found["skipped_size"] == sum(t.size for t in gone)
    assert found["n_layer"] == 30
    assert found["n_skipped"] == 3
    assert found["skipped"] == out
    assert found["layers"] == spec
    # one line says it, and every buffer's size in the log is what was loaded
    line = f"blocks {spec} left out{counts}, 27 of 30 kept, {found['skipped_size'] / 2**20:.2f} MiB not"
    line += f" loaded, {kv * 2 * 192 * 2 / 1024:.2f} KiB less KV a token (F16);"
    assert found["log"].count(line) == 1
    assert f"llama-skip eval FILE --skip-layers {spec}" in found["log"]


def test_reported_buffers_are_alike_in_every_load_mode(ours: Build, smollm2: Path) -> None:
    lines = []
    for mode in ("mmap", "none"):
        log = ours.worker.call(sizes, smollm2, skip("10-20"), load_mode=mode, use_extra_bufts=False)["log"]
        lines.append([line.split("=")[1] for line in log.splitlines() if "model buffer size" in line])
    kept = sum(t.padded for t in tensors(smollm2) if t.block not in range(10, 21))
    assert sum(float(s.split()[0]) for s in lines[0] if float(s.split()[0])) == pytest.approx(
        kept / 2**20, abs=0.01
    )
    assert [s for s in lines[0] if float(s.split()[0])] == lines[1]
