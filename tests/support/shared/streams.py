"""Shared by tests of several folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from comparison.libllama import Library, Override


def streams(lib: Library, path: Path, tokens: list[int], overrides: Override = ()) -> dict[int, np.ndarray]:
    """The residual stream as each block reads it, the one behind the last block as block 30."""
    model = lib.model(path, overrides)
    ctx = model.context(tap=True)
    ctx.decode(tokens)
    ctx.close()
    model.close()
    return {int(name.partition("-")[2] or 30): stream for name, stream in ctx.streams.items()}
