"""The results of an evaluation while it runs, in memory and in its file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from llama_skip.eval.file import EvalRow, Evaluation, read_evaluation, write_evaluation
from llama_skip.files.store import StrPath
from llama_skip.measure import candidates as quality
from llama_skip.measure.candidates import Candidate

WRITE_EVERY = 10.0  # seconds


class Results:
    """What was measured so far.

    Attributes:
        begun: the model, the text and the settings.
        rows: the finished rows, by key.
        pending: what was measured of the others, by key and window.
    """

    def __init__(self, begun: Evaluation, candidates: Sequence[Candidate], path: StrPath | None) -> None:
        """Go on with what the file `path` holds, where there is one.

        Raises:
            ValueError: it is no evaluation file, or one of another model, text or settings.
        """
        self.begun = begun
        self.rows: dict[str, EvalRow] = {}
        self.pending: quality.Done = {}
        self._names = {candidate.key: candidate.name for candidate in candidates}
        self._path = path
        self._written = time.monotonic()
        if path is not None and Path(path).exists():
            found = read_evaluation(path)
            _check_same(found, begun, path)
            self.rows = {row.key: row for row in found.rows}
            self.pending = {key: list(quality.from_json(pieces)) for key, pieces in found.pending.items()}

    def add(self, row: EvalRow) -> None:
        """Add a finished row."""
        self.rows[row.key] = row
        self.pending.pop(row.key, None)

    def evaluation(self) -> Evaluation:
        """Return all there is: rows in the order in which they were asked for, then the file's others."""
        asked = [replace(self.rows[key], name=name) for key, name in self._names.items() if key in self.rows]
        return replace(
            self.begun,
            rows=asked + [row for key, row in self.rows.items() if key not in self._names],
            complete=len(asked) == len(self._names),
            pending={key: quality.to_json(pieces) for key, pieces in self.pending.items()},
        )

    def write(self, *, now: bool = True) -> None:
        """Write the file, or only where the last time is a while ago.

        Raises:
            OSError: it cannot be written; what it held stays.
        """
        due = now or time.monotonic() - self._written > WRITE_EVERY
        if self._path is not None and due and (self.rows or any(self.pending.values())):
            write_evaluation(self._path, self.evaluation())
            self._written = time.monotonic()


def _check_same(found: Evaluation, wanted: Evaluation, path: StrPath) -> None:
    for name in ("model", "text", "settings"):
        old, new = (asdict(of)[name] for of in (found, wanted))
        for key in sorted({**old, **new}, key="sha256".__eq__):  # what a person can read first
            if old.get(key) != new.get(key):
                raise ValueError(
                    f"{path}: its results are for the {name} with {key} {old.get(key)}, not {new.get(key)}: "
                    "name another file, or remove it"
                )
