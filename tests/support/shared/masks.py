"""Masks that change between decodes, and what the unpatched library makes of them.

Keys and values of a token depend on the mask it was decoded under, and a masked block's are never read
again. So the unpatched library gets there by carrying its state from file to file, each with other parts
zeroed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from comparison.libllama import Library, Override

REFUSED = "llama_decode returned -1"
Steps = Sequence[tuple[str | None, slice]]


def across_files(
    lib: Library, files: dict[str | None, Path], tokens: list[int], steps: Steps, flash: str
) -> list[np.ndarray]:
    """Decode each step with the file of its mask, every time from the state that the last one left."""
    found, state = [], b""
    for mask, part in steps:
        model = lib.model(files[mask])
        ctx = model.context(flash=flash)
        if state:
            assert ctx.restore("data", Path(), state)
        found.append(ctx.decode(tokens[part]))
        state = ctx.save("data", Path())
        ctx.close()
        model.close()
    return found


def across_masks(
    lib: Library, path: Path, tokens: list[int], steps: Steps, flash: str, overrides: Override = ()
) -> list[np.ndarray]:
    model = lib.model(path, overrides)
    ctx = model.context(flash=flash)
    found = []
    for mask, part in steps:
        ctx.mask(mask)
        found.append(ctx.decode(tokens[part]))
    ctx.close()
    model.close()
    return found
