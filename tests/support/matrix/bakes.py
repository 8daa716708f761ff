"""The matrix of `llama-skip bake`: every architecture's sets, baked for the unpatched library or refused.

`PYTHONPATH=tests python -m support.matrix.bakes --write` runs all sets and writes the table in docs/bake.md.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from support.matrix.arch_cases import EMBEDDINGS, Set, sets
from support.matrix.arch_files import Base, Model, generated, make, write
from support.matrix.arch_recipes import COMPUTED
from support.matrix.arch_run import FLASHES, outcomes
from support.matrix.architectures import MODELS as ALL

from comparison import builds
from comparison.builds import Build
from comparison.stock_build import ROOT

DOCS = ROOT / "docs" / "bake.md"
MODELS = sorted([*ALL, *COMPUTED])
HEAD = "| architecture | model | blocks | sets baked | sets refused |\n|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Row:
    """What is known about one model: each set with why it is refused, empty where it is baked."""

    model: Model
    sets: list[Set]
    refusals: list[str]

    def text(self) -> str:
        count = Counter(re.sub(r"^blocks? [\d,]+ (would become block \d+: )?", "", r) for r in self.refusals)
        n_baked = count.pop("", 0)
        refused = "; ".join(f"{n}: {reason}" for reason, n in sorted(count.items()))
        cells = [self.model.arch, self.model.name, str(self.model.n_layer), str(n_baked), refused or "none"]
        return f"| {' | '.join(cells)} |"


def refusal(path: Path, chosen: Set) -> str:
    """Why a set is refused, without writing anything; empty where it is not."""
    from llama_skip import _core
    from llama_skip.bake.entries import baked_entries
    from llama_skip.files.gguf import read_gguf

    try:
        _core.check_skip(os.fsencode(path), chosen.spec, "", "set", "scale")
        baked_entries(read_gguf(path), set(chosen.blocks))
    except ValueError as err:
        return str(err).removeprefix("set: ").rpartition("left out: ")[2]
    return ""


def check(stock: Build, ours: Build, bases: dict[str, Base], name: str, folder: Path, *, every: bool) -> Row:
    """Compare a model's baked sets, all of them or one of a default run, and return its row of the table."""
    from llama_skip.bake.bake import bake_model

    model = make(stock, folder, bases, name)
    path = write(folder / "model.gguf", model.arch, model.metadata, model.tensors)
    all_sets = sets(model, every=True)
    row = Row(model, all_sets, [refusal(path, s) for s in all_sets])
    baked = [s for s, r in zip(all_sets, row.refusals, strict=True) if not r]
    embeddings = model.arch in EMBEDDINGS
    for chosen in baked if every else largest(baked):
        out = bake_model(path, folder / "baked.gguf", skip_layers=chosen.spec).path
        run = {"embeddings": embeddings, "flashes": FLASHES}
        expected = ours.worker.call(outcomes, path, {"skip.layers": chosen.spec}, **run)[0]
        found = stock.worker.call(outcomes, out, **run)[0]
        for flash, rows, wanted in zip(FLASHES, found, expected, strict=True):
            where = f"{model.name}, {chosen.name} ({chosen.spec}), flash attention {flash}"
            assert not isinstance(wanted, str), f"{where}: {wanted}"
            assert not isinstance(rows, str), f"{where}: the unpatched library says {rows}"
            assert np.isfinite(rows).all(), where
            assert np.array_equal(rows, wanted), f"{where}: off by {np.abs(rows - wanted).max()}"
    return row


def largest(baked: list[Set]) -> list[Set]:
    """The set that moves most blocks."""
    return sorted(baked, key=lambda s: (len(s.blocks), -s.blocks[0]))[-1:]


def document(rows: list[Row]) -> str:
    text = DOCS.read_text()
    start = text.index(HEAD) + len(HEAD)
    lines = [row.text() for row in sorted(rows, key=lambda r: (r.model.arch, r.model.name))]
    return text[:start] + "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table")
    parser.add_argument("models", nargs="*", help="models of the matrix (default: all)")
    args = parser.parse_args(argv)
    stock, ours = builds.stock(), builds.ours()
    rows, failed = [], 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bases = generated(stock, folder)
        for name in args.models or MODELS:
            try:
                rows.append(check(stock, ours, bases, name, folder, every=True))
                print(rows[-1].text(), flush=True)
            except Exception as err:
                failed += 1
                print(f"error: {name}: {err}", file=sys.stderr, flush=True)
    if args.write and not failed and not args.models:
        DOCS.write_text(document(rows))
    stock.worker.close()
    ours.worker.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
