"""What a library computes for a model: output rows of a prompt batch, then of single tokens. Runs in a
Worker.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int32
from pathlib import Path
from typing import Any

import numpy as np

from comparison.libllama import Batch, Context, Library, LlamaError, Model, Override

PROMPT = [1, 5, 9, 7, 3, 11, 2, 8, 4, 60, 33, 17]
ROWS = [0, 1, 5, 11]
SINGLE = [20, 21, 22]
FLASHES = ("off", "on")
Outcome = np.ndarray | str  # rows, or why there are none


def batch_of(tokens: Sequence[int], pos: int, rows: Sequence[int], seq: int = 0) -> Batch:
    n = len(tokens)
    batch = Batch(n_tokens=n)
    batch.token = (c_int32 * n)(*tokens)
    batch.pos = (c_int32 * n)(*range(pos, pos + n))
    batch.n_seq_id = (c_int32 * n)(*[1] * n)
    batch.seq_id = (POINTER(c_int32) * n)(
        *[ctypes.cast((c_int32 * 1)(seq), POINTER(c_int32)) for _ in range(n)]
    )
    batch.logits = (ctypes.c_int8 * n)(*[i in rows for i in range(n)])
    return batch


def decode(
    ctx: Context, tokens: Sequence[int], pos: int, rows: Sequence[int], embeddings: bool, seq: int = 0
) -> list[np.ndarray]:
    c = ctx.c
    result = c.llama_decode(ctx.p, batch_of(tokens, pos, rows, seq))
    if result != 0:
        raise ctx.lib.fail(f"llama_decode returned {result}")
    get, width = c.llama_get_logits_ith, ctx.model.n_vocab
    if embeddings:
        c.llama_model_n_embd_out.restype, c.llama_model_n_embd_out.argtypes = c_int32, [ctypes.c_void_p]
        get, width = c.llama_get_embeddings_ith, c.llama_model_n_embd_out(ctx.model.p)
    get.restype = POINTER(c_float)
    get.argtypes = [ctypes.c_void_p, c_int32]
    return [np.ctypeslib.as_array(get(ctx.p, i), (width,)).copy() for i in rows]


def rows(model: Model, flash: str, mask: str | None, embeddings: bool) -> Outcome:
    try:
        ctx = model.context(flash=flash, n_ctx=64, embeddings=embeddings)
    except LlamaError as err:
        return str(err)
    try:
        if mask is not None:
            ctx.mask(mask)
        found = decode(ctx, PROMPT, 0, ROWS, embeddings)
        for i, token in enumerate(SINGLE):
            found += decode(ctx, [token], len(PROMPT) + i, [0], embeddings)
        return np.stack(found)
    except LlamaError as err:
        return str(err)
    finally:
        ctx.close()


def outcomes(
    lib: Library,
    path: Path,
    overrides: Override = (),
    *,
    masks: Sequence[str | None] = (None,),
    flashes: Sequence[str] = ("off", "on"),
    embeddings: bool = False,
    **params: Any,
) -> list[list[Outcome]]:
    """For each mask and each setting of flash attention: the rows, or the error. The model is loaded once."""
    try:
        model = lib.model(path, overrides, **{"load_mode": "none", "n_gpu_layers": 0, **params})
    except LlamaError as err:
        return [[str(err)] * len(flashes) for _ in masks]
    try:
        return [[rows(model, flash, mask, embeddings) for flash in flashes] for mask in masks]
    finally:
        model.close()


def images(lib: Library, path: Path, overrides: Override) -> np.ndarray:
    """Logits behind rows of embeddings, as a projector hands images in, with its deepstack features."""
    model = lib.model(path, overrides, load_mode="none", n_gpu_layers=0)
    ctx = model.context(n_ctx=64)
    lib.c.llama_model_n_embd_inp.restype = c_int32
    lib.c.llama_model_n_embd_inp.argtypes = [ctypes.c_void_p]
    n, width = 6, lib.c.llama_model_n_embd_inp(model.p)
    batch = batch_of([0] * n, 0, [n - 1])
    batch.token = None
    data = np.random.default_rng(5).normal(0.0, 1.0, (n, width)).astype(np.float32)
    batch.embd = data.ctypes.data_as(POINTER(c_float))
    batch.pos = (c_int32 * (4 * n))(
        *[*range(n), *[0] * n, *range(n), *[0] * n]
    )  # M-RoPE: time, height, width, -
    try:
        if lib.c.llama_decode(ctx.p, batch) != 0:
            raise lib.fail("llama_decode failed")
        lib.c.llama_get_logits_ith.restype = POINTER(c_float)
        return np.ctypeslib.as_array(lib.c.llama_get_logits_ith(ctx.p, n - 1), (model.n_vocab,)).copy()
    finally:
        ctx.close()
        model.close()
