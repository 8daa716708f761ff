"""A progress bar on stderr: tqdm's, where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Protocol


class Progress(Protocol):
    """What the long steps of a command report to."""

    def step(self, n: int = 1) -> None:
        """`n` steps are done."""

    def say(self, text: str) -> None:
        """Show what is being done."""


class _Silent:
    def step(self, n: int = 1) -> None:
        pass

    def say(self, text: str) -> None:
        pass


class _Bar:
    def __init__(self, total: int) -> None:
        tqdm: Any = import_module("tqdm").tqdm
        self.bar = tqdm(total=total, leave=False, bar_format="{l_bar}{bar}| {elapsed}<{remaining}")

    def step(self, n: int = 1) -> None:
        self.bar.update(n)

    def say(self, text: str) -> None:
        self.bar.set_description(text)


@contextmanager
def progress(total: int, *, shown: bool = True) -> Iterator[Progress]:
    """Show a bar of `total` steps for as long as the block runs, or nothing."""
    try:
        bar = _Bar(total) if shown else None
    except ImportError:
        bar = None
    if bar is None:
        yield _Silent()
        return
    try:
        yield bar
    finally:
        bar.bar.close()
