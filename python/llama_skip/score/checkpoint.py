"""Where a long measurement goes on after it was stopped: what is known so far, in one file."""

from __future__ import annotations

import json
import zipfile
from typing import Any

import numpy as np

from llama_skip.files.store import StrPath, part_path, replacing
from llama_skip.measure.divergence import Scored
from llama_skip.score.search import Sweep
from llama_skip.skipset import Unit

LISTS = ("out", "alive")  # of a step
DICTS = ("refused", "prior")  # of a step, by block or half
FORM = 3  # of the file; one that an older program left is another measurement's


class Checkpoint:
    """The step that is being measured, beside the file of the result; it is only read for the same `key`."""

    def __init__(self, output: StrPath | None, key: dict[str, Any]) -> None:
        self.path = None if output is None else part_path(output)
        self.key = json.dumps({**key, "form": FORM}, sort_keys=True)

    def load(self, out: list[Unit], *, after: bool) -> Sweep | None:
        """Return the step that was begun, without `out`; with `after` also the next one.

        Raises:
            ValueError: the file is none of ours.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            with np.load(self.path) as file:
                if str(file["key"]) != self.key:
                    return None
                found, alive = (_units(file, name) for name in LISTS)
                if not (found == out or (after and found[:-1] == out)):
                    return None
                units, counts = _units(file, "units"), file["counts"].tolist()
                pieces = {
                    unit: _pieces(file, f"u{i}", n)
                    for i, (unit, n) in enumerate(zip(units, counts, strict=True))
                }
                refused, prior = (
                    {_unit(key): value for key, value in json.loads(str(file[name]))} for name in DICTS
                )
                base = _pieces(file, "base", int(file["n_base"]))
                return Sweep(found, alive, base, pieces, refused, prior)
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as err:
            raise ValueError(f"{self.path}: not what a stopped run leaves ({err}); remove it") from None

    def save(self, state: Sweep) -> None:
        """Write what is measured so far.

        Raises:
            OSError: the file cannot be written.
        """
        if self.path is None:
            return
        arrays: dict[str, Any] = {
            "key": self.key,
            "n_base": len(state.base),
            "units": json.dumps(list(state.samples)),
            "counts": np.array([len(pieces) for pieces in state.samples.values()], dtype=np.int64),
            **{name: json.dumps(getattr(state, name)) for name in LISTS},
            **{name: json.dumps(list(getattr(state, name).items())) for name in DICTS},
        }
        samples = ((f"u{i}", pieces) for i, pieces in enumerate(state.samples.values()))
        for name, pieces in [("base", state.base), *samples]:
            for i, piece in enumerate(pieces):
                for field, values in piece._asdict().items():
                    arrays[f"{name}/{i}/{field}"] = values
        with replacing(self.path) as file:
            np.savez(file, **arrays)

    def remove(self) -> None:
        """Remove the file, if there is one."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _pieces(file: Any, name: str, n: int) -> list[Scored]:
    return [Scored(*(file[f"{name}/{i}/{field}"] for field in Scored._fields)) for i in range(n)]


def _units(file: Any, name: str) -> list[Unit]:
    return [_unit(value) for value in json.loads(str(file[name]))]


def _unit(value: Any) -> Unit:
    """Return a block or half from JSON, where a pair is a list."""
    return value if isinstance(value, int) else (value[0], value[1])
