"""Where a long measurement goes on after it was stopped: what is known so far, in one file."""

from __future__ import annotations

import json
import zipfile
from typing import Any

import numpy as np

from llama_skip.files.store import StrPath, part_path, replacing
from llama_skip.measure.divergence import Scored
from llama_skip.score.search import Sweep

DICTS = ("refused", "prior")  # of a step, by block


class Checkpoint:
    """The step that is being measured, beside the file of the result; it is only read for the same `key`."""

    def __init__(self, output: StrPath | None, key: dict[str, Any]) -> None:
        self.path = None if output is None else part_path(output)
        self.key = json.dumps(key, sort_keys=True)

    def load(self, out: list[int], *, after: bool) -> Sweep | None:
        """Return the step that was begun, without the blocks `out`; with `after` also the next one.

        Raises:
            ValueError: the file is none of ours.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            with np.load(self.path) as file:
                found = file["out"].tolist()
                if str(file["key"]) != self.key or not (found == out or (after and found[:-1] == out)):
                    return None
                blocks, counts = file["blocks"].tolist(), file["counts"].tolist()
                pieces = {
                    block: _pieces(file, f"b{block}", n) for block, n in zip(blocks, counts, strict=True)
                }
                refused, prior = (
                    {int(b): value for b, value in json.loads(str(file[name])).items()} for name in DICTS
                )
                base = _pieces(file, "base", int(file["n_base"]))
                return Sweep(found, file["alive"].tolist(), base, pieces, refused, prior, str(file["scale"]))
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
            "out": np.array(state.out, dtype=np.int64),
            "alive": np.array(state.alive, dtype=np.int64),
            "n_base": len(state.base),
            "scale": state.scale,
            "blocks": np.array(list(state.samples), dtype=np.int64),
            "counts": np.array([len(pieces) for pieces in state.samples.values()], dtype=np.int64),
            **{name: json.dumps(getattr(state, name)) for name in DICTS},
        }
        for name, pieces in [("base", state.base), *((f"b{b}", p) for b, p in state.samples.items())]:
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
