"""A random life of one model with blocks left out: contexts, masks, sequences, saved states. Runs in a
Worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from support.matrix.arch_run import ROWS, decode

from comparison.libllama import Context, Library, LlamaError, Model

Step = tuple[Any, ...]
PROMPT = list(range(3, 15))


def do(
    ctx: Context, step: Step, positions: dict[int, int], embeddings: bool, saved: dict[int, bytes]
) -> None:
    what, *args = step
    if what == "decode":
        seq, n = args
        found = decode(ctx, PROMPT[:n], positions.get(seq, 0), [0, n - 1], embeddings, seq)
        assert np.isfinite(found).all(), f"{step}: not finite"
        positions[seq] = positions.get(seq, 0) + n
    elif what == "mask":
        ctx.mask(*args)
    elif not ctx.memory:
        return
    elif what == "remove":
        seq, n = args
        keep = max(positions.get(seq, 0) - n, 0)
        if ctx.c.llama_memory_seq_rm(ctx.memory, seq, keep, -1):
            positions[seq] = keep
    elif what == "copy":
        ctx.c.llama_memory_seq_rm(ctx.memory, args[1], -1, -1)
        ctx.c.llama_memory_seq_cp(ctx.memory, args[0], args[1], -1, -1)
        positions[args[1]] = positions.get(args[0], 0)
    elif what == "clear":
        ctx.c.llama_memory_clear(ctx.memory, True)
        positions.clear()
    elif what == "save":
        saved[args[0]] = ctx.save("seq_data", Path(), seq=args[0])
    elif (
        what == "restore" and saved.get(args[0]) and ctx.restore("seq_data", Path(), saved[args[0]], args[1])
    ):
        positions[args[1]] = positions.get(args[0], 0)


def fresh(model: Model, params: dict[str, Any]) -> np.ndarray:
    ctx = model.context(**params)
    try:
        return np.stack(decode(ctx, PROMPT, 0, ROWS, params["embeddings"]))
    finally:
        ctx.close()


def live(
    lib: Library,
    path: Path,
    overrides: dict[str, str],
    load: dict[str, Any],
    params: dict[str, Any],
    steps: Sequence[Step],
) -> list[str]:
    """Do the steps and return what was refused; in the end the cleared context is as a new one."""
    refused: list[str] = []
    try:
        model = lib.model(path, overrides, **load)
    except LlamaError as err:
        return [str(err)]
    try:
        ctx = model.context(**params)
    except LlamaError as err:
        model.close()
        return [str(err)]
    positions: dict[int, int] = {}
    saved: dict[int, bytes] = {}
    for step in steps:
        try:
            do(ctx, step, positions, params["embeddings"], saved)
        except LlamaError as err:
            refused.append(f"{step}: {err}")
    if ctx.memory:
        ctx.c.llama_memory_clear(ctx.memory, True)
    if any(step[0] == "mask" for step in steps):
        ctx.mask(None)
    try:
        found = np.stack(decode(ctx, PROMPT, 0, ROWS, params["embeddings"]))
        assert np.array_equal(found, fresh(model, params)), "a context that was cleared is not as a new one"
    except LlamaError as err:
        refused.append(str(err))
    ctx.close()
    model.close()
    return refused
