"""Which windows of a text choose blocks, which judge what stands in gaps, and which are fitted on.

Each has a stretch of its own: windows next to those of a fit are on the same subject, and flatter it. As
shares of the text these are the same however many windows are taken from all over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

OF = 8  # windows; one of them is held out, and one chooses
LEAST = 3


def held_out(windows: Sequence[object]) -> range:
    """Return which windows are not fitted on: the last ones."""
    n = len(windows)
    return range(min(-(-n * (OF - 1) // OF), n - 1), n)


def chosen_on(windows: Sequence[object]) -> range:
    """Return which windows choose blocks that heal: those before, of at least LEAST in all."""
    n = len(windows)
    end = min(n * (OF - 1) // OF, held_out(windows).start)
    return range(min(-(-n * (OF - 2) // OF), end - 1), end)


def fitted_on(windows: Sequence[T], most: int) -> list[T]:
    """Return at most so many of the windows before those, from all of that stretch."""
    rest = windows[: chosen_on(windows).start]
    return list(rest[:: -(-len(rest) // most)])
