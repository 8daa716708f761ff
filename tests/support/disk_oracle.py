"""What a disk block with a scale gives, by a library without our code: its output is overwritten while it
runs. The functions run in a Worker.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from support.matrix.arch_run import PROMPT, ROWS, SINGLE, Outcome, decode, rows

from comparison.libllama import EVAL_CALLBACK, Context, Library, LlamaError, P

LAST = ("result_embd", "h_nextn")  # names of the last block's output, where it is not l_out
LOAD = {"load_mode": "none", "n_gpu_layers": 0, "use_extra_bufts": False}


class Scaled:
    """An eval callback that turns the output f(x) of blocks into x + S*(f(x) - x).

    The output of block N is the tensor that architectures name l_out-N, some the last one by a name of its
    own; x is the output of the block before it, and what the first norm reads in block 0. `rows` are those
    that the last block hands on.
    """

    def __init__(self, scales: Mapping[int, float], n_layer: int) -> None:
        self.scales, self.n_layer = scales, n_layer
        self.streams: dict[int, np.ndarray] = {}  # the input of block N
        self.done: set[int] = set()
        self.rows: list[int] = []
        self._values: dict[int, np.ndarray] = {}
        self.callback = EVAL_CALLBACK(self._on_tensor)

    def begin(self, rows: Sequence[int]) -> None:
        self.streams.clear()
        self.done.clear()
        self.rows = list(rows)

    def _on_tensor(self, tensor: Any, ask: bool, _: Any) -> bool:
        if ask:
            return True
        t = tensor.contents
        name = t.name.decode()
        if name in ("norm-0", "attn_norm-0") and t.src[0] in self._values:
            self.streams.setdefault(0, self._values[t.src[0]])
        if t.type == 0 and t.ne[2] == t.ne[3] == 1 and t.data and t.nb[0] == 4:
            data = np.ctypeslib.as_array(ctypes.cast(t.data, ctypes.POINTER(ctypes.c_float)), (1,))
            data = np.lib.stride_tricks.as_strided(data, (t.ne[1], t.ne[0]), (t.nb[1], 4))
            il = self._block_of(name)
            if il in self.scales and il not in self.done:
                self._overwrite(il, data)
            self._values[ctypes.addressof(t)] = data.copy()
            if il is not None:
                self.streams[il + 1] = self._values[ctypes.addressof(t)]
        return True

    def _block_of(self, name: str) -> int | None:
        """The block whose output has this name; one architecture names it as the input of the next."""
        if name in LAST:
            return self.n_layer - 1
        match = re.fullmatch(r"(l_out|attn_norm_in)-(\d+)", name)
        il = int(match[2]) - (match[1] == "attn_norm_in") if match else -1
        return il if il >= 0 else None

    def _overwrite(self, il: int, data: np.ndarray) -> None:
        x = self.streams[il]
        if len(x) != len(data):
            x = x[self.rows]
        data[:] = x + np.float32(self.scales[il]) * (data - x)
        self.done.add(il)


def scaled_rows(
    lib: Library, path: Path, scales: Mapping[int, float], *, embeddings: bool = False, flash: str = "off"
) -> np.ndarray:
    """The rows that arch_run.outcomes() gives, with blocks scaled from outside."""
    model = lib.model(path, (), **LOAD)
    scaled = Scaled(scales, lib.c.llama_model_n_layer(model.p))
    ctx = Context(
        model, flash=flash, n_ctx=64, embeddings=embeddings, cb_eval=ctypes.cast(scaled.callback, P)
    )
    try:
        scaled.begin(ROWS)
        found = decode(ctx, PROMPT, 0, ROWS, embeddings)
        for i, token in enumerate(SINGLE):
            scaled.begin([0])
            found += decode(ctx, [token], len(PROMPT) + i, [0], embeddings)
            assert scaled.done == set(scales)
        return np.stack(found)
    finally:
        ctx.close()
        model.close()


def found_rows(
    lib: Library,
    path: Path,
    overrides: Mapping[str, Any],
    *,
    embeddings: bool = False,
    flash: str = "off",
    **params: Any,
) -> Outcome:
    """The same rows by this library, or why there are none."""
    try:
        model = lib.model(path, dict(overrides), **{**LOAD, **params})
    except LlamaError as err:
        return str(err)
    try:
        return rows(model, flash, None, embeddings)
    finally:
        model.close()
