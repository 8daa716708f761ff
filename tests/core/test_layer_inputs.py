"""What a draft head reads of its target (EAGLE-3, DFlash): the stream that enters a block."""

from __future__ import annotations

from ctypes import POINTER, c_bool, c_float, c_uint32, c_void_p
from pathlib import Path

import numpy as np
import pytest

from comparison.builds import Build
from comparison.libllama import Library, LlamaError, Override
from comparison.oracle import skip

TOKENS = list(range(3, 11))
# of llama-ext.h, with C++ names
NAMES = (
    "_Z30llama_set_embeddings_layer_inpP13llama_contextjb",
    "_Z30llama_get_embeddings_layer_inpP13llama_contextj",
)


def layer_inputs(
    lib: Library, path: Path, blocks: list[int], overrides: Override, mask: str | None
) -> list[np.ndarray] | str:
    """The stream that enters each of the blocks, [n_tokens, n_embd]; or why there is none."""
    want, given = (getattr(lib.c, name) for name in NAMES)
    want.argtypes, want.restype = [c_void_p, c_uint32, c_bool], None
    given.argtypes, given.restype = [c_void_p, c_uint32], POINTER(c_float)
    lib.c.llama_model_n_embd.argtypes = [c_void_p]
    model = lib.model(path, overrides)
    ctx = model.context(n_ctx=64)
    try:
        for il in blocks:
            want(ctx.p, il, True)
        if mask:
            ctx.mask(mask)
        ctx.decode(TOKENS)
        n_embd = lib.c.llama_model_n_embd(model.p)
        rows = [given(ctx.p, il) for il in blocks]
        return [np.ctypeslib.as_array(row, (len(TOKENS), n_embd)).copy() for row in rows]
    except LlamaError as err:
        return str(err)
    finally:
        ctx.close()
        model.close()


@pytest.mark.parametrize("way", ["load", "mask"])
def test_the_input_of_a_block_in_a_gap_is_what_crosses_it(
    stock: Build, ours: Build, smollm2: Path, way: str
) -> None:
    def found(blocks: list[int], layers: str) -> list[np.ndarray]:
        overrides, mask = (skip(layers), None) if way == "load" else ({}, layers)
        rows = ours.worker.call(layer_inputs, smollm2, blocks, overrides, mask)
        assert not isinstance(rows, str), rows
        return list(rows)

    plain = stock.worker.call(layer_inputs, smollm2, [2, 10, 11, 27], {}, None)
    gap = found([2, 10, 11, 12, 27], "10-11")
    assert np.array_equal(gap[0], plain[0])
    assert np.array_equal(gap[1], plain[1])  # all blocks before it run
    assert np.array_equal(gap[2], gap[1]) and np.array_equal(gap[3], gap[1])
    assert not np.array_equal(gap[4], plain[3])
    scaled = ours.worker.call(layer_inputs, smollm2, [10, 12], skip("10-11", "0.5"), None)
    assert np.array_equal(scaled[0], scaled[1]) and np.allclose(scaled[0], plain[1] / 2)


@pytest.mark.parametrize("way", ["load", "mask"])
def test_a_gap_at_the_end_has_no_input(ours: Build, smollm2: Path, way: str) -> None:
    overrides, mask = (skip("28-29"), None) if way == "load" else ({}, "28-29")
    said = ours.worker.call(layer_inputs, smollm2, [29], overrides, mask)
    assert isinstance(said, str) and "a draft head reads the input of block 29" in said
    rows = ours.worker.call(layer_inputs, smollm2, [27], overrides, mask)
    assert not isinstance(rows, str)
