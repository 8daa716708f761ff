"""Shared by tests of several folders."""

from __future__ import annotations

from typing import Any

import pytest


class Counter:
    """A log callback is too coarse; this counts the tokens that a context is given."""

    def __init__(self, llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_tokens = 0
        history = llm._history
        append = history._append

        def counted(tokens: Any, decode: Any) -> Any:
            self.n_tokens += len(tokens)
            return append(tokens, decode)

        monkeypatch.setattr(history, "_append", counted)

    def take(self) -> int:
        n, self.n_tokens = self.n_tokens, 0
        return n
