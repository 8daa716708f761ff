"""What stands beside a skip set in a program: quantised caches, context shift, imatrix, placement."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from support.rpc import rpc_device
from support.shared.devices import SPLIT_ROW, SPLIT_TENSOR, on_devices, with_experts

from comparison.builds import Build
from comparison.libllama import Library, LlamaError, Override
from comparison.oracle import TEXT, expand, left_out, of_blocks, skip, tensors

OUT = "3,13-14,25,6:attn,7:ffn"
Q8_0, Q4_0 = 8, 2  # of enum ggml_type


def on_context(
    lib: Library,
    path: Path,
    tokens: list[int],
    overrides: Override = (),
    *,
    mask: str | None = None,
    shift: bool = False,
    **params: Any,
) -> np.ndarray:
    """Logits of every token; with `shift`, a middle piece is cut out on the way. params: of the context."""
    model = lib.model(path, overrides)
    ctx = model.context(**params)
    if mask:
        ctx.mask(mask)
    n = len(tokens) - 4
    found = [ctx.decode(tokens[:n])]
    if shift:
        assert lib.c.llama_memory_seq_rm(ctx.memory, 0, 4, 9)
        lib.c.llama_memory_seq_add(ctx.memory, 0, 9, -1, -5)
    start = n - 5 if shift else n
    found += [ctx.decode(tokens[n : n + 2], pos=start)]
    found += [ctx.decode([t], pos=start + 2 + i) for i, t in enumerate(tokens[n + 2 :])]
    ctx.close()
    model.close()
    return np.concatenate(found)


CACHES = [
    pytest.param({"type_k": Q8_0, "type_v": Q8_0, "flash": "on"}, id="q8_0 flash"),
    pytest.param({"type_k": Q8_0, "flash": "off"}, id="q8_0 K"),
    pytest.param({"type_k": Q4_0, "type_v": Q8_0, "flash": "on"}, id="q4_0 q8_0 flash"),
]


@pytest.mark.parametrize("params", CACHES)
def test_a_quantised_cache(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int], zeroed: Any, params: dict[str, Any]
) -> None:
    expected = stock.worker.call(on_context, zeroed(OUT), tokens[:24], **params)
    assert np.array_equal(ours.worker.call(on_context, smollm2, tokens[:24], skip(OUT), **params), expected)
    assert np.array_equal(ours.worker.call(on_context, smollm2, tokens[:24], mask=OUT, **params), expected)
    # the cache is not the default one
    assert not np.array_equal(ours.worker.call(on_context, smollm2, tokens[:24], skip(OUT)), expected)


@pytest.mark.parametrize(
    "params", [{"flash": "off"}, {"flash": "on", "type_k": Q8_0, "type_v": Q8_0}], ids=str
)
def test_a_context_shift(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int], zeroed: Any, params: dict[str, Any]
) -> None:
    """The keys of every kept block are rotated to their new positions, in its own cache."""
    args = {"shift": True, **params}
    expected = stock.worker.call(on_context, zeroed(OUT), tokens[:24], **args)
    assert np.array_equal(ours.worker.call(on_context, smollm2, tokens[:24], skip(OUT), **args), expected)
    assert np.array_equal(ours.worker.call(on_context, smollm2, tokens[:24], mask=OUT, **args), expected)
    assert not np.array_equal(
        ours.worker.call(on_context, smollm2, tokens[:24], skip(OUT), **params), expected
    )


def imatrix(build: Build, model: Path, text: Path, out: Path, *args: object) -> dict[str, np.ndarray]:
    """The sums and counts that llama-imatrix writes, by name."""
    done = build.run(
        "llama-imatrix",
        *("-m", model, "-f", text, "-o", out, "-c", 64, "-b", 64, "--chunks", 2, "-t", 1, "--no-ppl"),
        *args,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {t.name: np.array(t.data) for t in GGUFReader(out).tensors}


def test_imatrix_collects_what_kept_blocks_see(
    stock: Build, ours: Build, smollm2: Path, tmp_path: Path, zeroed: Any
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 3)
    gone = {t.name for t in left_out(smollm2, OUT)}
    expected = imatrix(stock, zeroed(OUT), text, tmp_path / "a.gguf")
    found = imatrix(ours, smollm2, text, tmp_path / "b.gguf", "--skip-layers", OUT)
    assert sorted(found) == sorted(n for n in expected if n.rpartition(".")[0] not in gone)
    for name, data in found.items():
        assert np.array_equal(data, expected[name]), name
    assert len(found) == 2 * (7 * 26 - 4 - 3)  # four matrices in an attention, three in a feed-forward


def test_split_mode_row_is_refused_as_without_a_set(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int]
) -> None:
    """No device here splits rows; which blocks there are does not matter to who says so."""
    with rpc_device(ours.tool("ggml-rpc-server")) as device:
        for build, overrides in ((stock, {}), (ours, skip(OUT))):
            args = ([device.endpoint], smollm2, tokens, overrides)
            with pytest.raises(LlamaError, match="device RPC0 does not support split buffers"):
                build.worker.fresh(on_devices, *args, n_gpu_layers=99, split_mode=SPLIT_ROW)


def test_split_mode_tensor(stock: Build, ours: Build, smollm2: Path, tokens: list[int], zeroed: Any) -> None:
    """Every kept block's matrices are cut in two; none of what is left out reaches either device."""
    found = {}
    kept = [il for il in range(30) if il not in expand(OUT)]
    for build, path, overrides in ((stock, zeroed(OUT), {}), (ours, smollm2, skip(OUT))):
        with ExitStack() as stack:
            devices = [stack.enter_context(rpc_device(build.tool("ggml-rpc-server"))) for _ in range(2)]
            args = ([d.endpoint for d in devices], path, tokens[:12], overrides)
            found[build], _ = build.worker.fresh(
                on_devices, *args, n_gpu_layers=99, split_mode=SPLIT_TENSOR, flash="on"
            )
            if build is ours:
                assert [d.blocks() for d in devices] == [kept, kept]
    assert np.array_equal(found[ours], found[stock])


@pytest.mark.parametrize(("flag", "suffix"), [("-ncmoe", "_exps"), ("-ncffn", "")])
def test_feed_forward_weights_of_the_first_kept_blocks_stay_on_the_host(
    ours: Build, smollm2: Path, tmp_path: Path, flag: str, suffix: str
) -> None:
    model = with_experts(smollm2, tmp_path / "experts.gguf") if flag == "-ncmoe" else smollm2
    kept = [il for il in range(30) if il not in expand(OUT)]
    parts = ("up", "down", "gate")
    on_host = {f"blk.{il}.ffn_{part}{suffix}.weight" for il in kept[:5] for part in parts}
    with rpc_device(ours.tool("ggml-rpc-server")) as device:
        done = ours.run(
            "llama-completion",
            *("-m", model, "-no-cnv", "--no-warmup", "-n", 1, "-p", "Once", "-c", 64, "-t", 1),
            *("--skip-layers", OUT, "--rpc", device.endpoint, "-ngl", 99, "-fit", "off", flag, 5),
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert (
            set(device.weights())
            == {t.name for t in tensors(model)} - {t.name for t in left_out(model, OUT)} - on_host
        )


def test_bench_shows_the_scale(ours: Build, smollm2: Path) -> None:
    args = ("-m", smollm2, "-p", 2, "-n", 0, "-r", 1, "-t", 1, "--no-warmup")
    sets = ("--skip-layers", "none", "--skip-layers", "13-14", "--skip-scale", "0.9")
    table = ours.run("llama-bench", *args, *sets).stdout.splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in table if "|" in line]
    column = cells[0].index("skip_scale")
    assert [row[column] for row in cells[2:]] == ["", "0.9"]
    found = json.loads(ours.run("llama-bench", *args, *sets, "-o", "json").stdout)
    assert [(r["skip_layers"], r["skip_scale"]) for r in found] == [("none", ""), ("13-14", "0.9")]
    plain = ours.run("llama-bench", *args, "--skip-layers", "13-14").stdout
    assert "skip_layers" in plain and "skip_scale" not in plain
    left_out = sum(t.size for t in of_blocks(smollm2, [13, 14]))
    assert found[1]["model_size"] == found[0]["model_size"] - left_out


def test_a_prompt_cache_belongs_to_its_set(ours: Build, smollm2: Path, tmp_path: Path) -> None:
    args = ("-m", smollm2, "-no-cnv", "--no-warmup", "-c", 128, "-t", 1)
    args = (*args, "-n", 8, "--temp", 0, "-p", "Once upon a time")
    cache = ("--prompt-cache", tmp_path / "session")
    expected = ours.run("llama-completion", *args, "--skip-layers", OUT)
    for _ in range(2):  # the first run writes the file, the second reads it
        done = ours.run("llama-completion", *args, *cache, "--skip-layers", OUT)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout == expected.stdout
    saved = (tmp_path / "session").read_bytes()
    for other, has in [(("--skip-layers", "3"), "'skip 3'"), ((), "no block left out")]:
        done = ours.run("llama-completion", *args, *cache, *other)
        assert done.returncode > 0
        assert f"the state was saved with 'skip {OUT}', this context has {has}" in done.stderr
    assert (tmp_path / "session").read_bytes() == saved


def two_sequences(
    lib: Library, path: Path, tokens: list[int], overrides: Override, kv_unified: bool
) -> np.ndarray:
    """Logits of two sequences that share a beginning and part; one is cut back and goes on otherwise."""
    model = lib.model(path, overrides)
    ctx = model.context(n_seq_max=2, kv_unified=kv_unified)
    found = [ctx.decode(tokens[:8], seq=0)]
    lib.c.llama_memory_seq_cp(ctx.memory, 0, 1, -1, -1)
    found += [ctx.decode(tokens[8:12], seq=1), ctx.decode(tokens[12:16], seq=0)]
    assert lib.c.llama_memory_seq_rm(ctx.memory, 1, 6, -1)
    found += [ctx.decode(tokens[16:18], seq=1), ctx.decode(tokens[18:19], seq=0)]
    ctx.close()
    model.close()
    return np.concatenate(found)


@pytest.mark.parametrize("kv_unified", [True, False])
def test_several_sequences(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int], zeroed: Any, kv_unified: bool
) -> None:
    expected = stock.worker.call(two_sequences, zeroed(OUT), tokens, {}, kv_unified)
    found = ours.worker.call(two_sequences, smollm2, tokens, skip(OUT), kv_unified)
    assert np.array_equal(found, expected)
