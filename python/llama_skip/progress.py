"""A progress bar on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

Log = Callable[[str], object]  # what is called with lines that a user should see


class Progress:
    """What the long steps of a command report to: a bar of `total` steps, or nothing."""

    def __init__(self, total: int, *, shown: bool = True) -> None:
        tqdm: Any = import_module("tqdm").tqdm
        form = "{l_bar}{bar}| {elapsed}<{remaining}"
        self.bar = tqdm(total=total, leave=False, bar_format=form, disable=not shown)

    def step(self, n: int = 1) -> None:
        """`n` steps are done."""
        self.bar.update(n)

    def say(self, text: str) -> None:
        """Show what is being done."""
        self.bar.set_description(text)


@contextmanager
def progress(total: int, *, shown: bool = True) -> Iterator[Progress]:
    """Show a bar of `total` steps for as long as the block runs, or nothing."""
    bar = Progress(total, shown=shown)
    try:
        yield bar
    finally:
        bar.bar.close()
