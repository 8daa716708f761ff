"""The matrix: every architecture with blocks left out, against a reference that the unpatched library
computes.

`PYTHONPATH=tests python -m support.matrix.architectures --write` runs all sets and writes
docs/architectures.md and csrc/set/arch-tested.h.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from support.matrix.arch_cases import EMBEDDINGS, Set, kinds, reference, sets
from support.matrix.arch_files import Base, Model, entry, generated, make, write
from support.matrix.arch_oracle import pruned, zeroed
from support.matrix.arch_recipes import COMMON, DEEPER, GENERATED, MALFORMED, NEXTN, RECIPES
from support.matrix.arch_run import FLASHES, outcomes
from support.matrix.halves import Reasons, column, reasons

from comparison import builds
from comparison.builds import Build
from comparison.libllama import Library
from comparison.stock_build import ROOT

DOCS = ROOT / "docs" / "architectures.md"
TESTED = ROOT / "csrc" / "set" / "arch-tested.h"
MODELS = sorted(
    {*RECIPES, *GENERATED, *DEEPER, *(f"{n}-nextn" for n in NEXTN)} - MALFORMED.keys() - {"*", "dflash"}
)


@dataclass(frozen=True)
class Row:
    """What is known about one model: each set with why it is refused, or what it is compared with, and why
    halves of its blocks cannot go alone.
    """

    model: Model
    sets: list[Set]
    refusals: list[str]
    halves: Reasons = field(default_factory=dict)

    @property
    def arch(self) -> str:
        return self.model.arch

    @property
    def whole(self) -> bool:
        return all("cannot be left out" in r and not re.search(r"blocks \d", r) for r in self.refusals)

    def text(self) -> str:
        count = Counter(kinds(self.model))
        blocks = ", ".join(f"{n} {kind}" for kind, n in count.items()) or "none but NextN"
        references = [
            reference(self.model, s) for s, r in zip(self.sets, self.refusals, strict=True) if not r
        ]
        exact = Counter(r for r in references if r)
        compared = ", ".join(f"{n} ({kind})" for kind, n in exact.items()) or "none"
        if None in references:
            compared += f", {references.count(None)} run only"
        if self.whole:
            refused = "all: " + self.refusals[0].rpartition("cannot be left out: ")[2]
        else:
            refused = "; ".join(
                f"{s.name} ({s.spec}): {r.rpartition('left out: ')[2]}"
                for s, r in zip(self.sets, self.refusals, strict=True)
                if r
            )
        halves = " | ".join("none" if self.whole else column(self.halves[half]) for half in ("attn", "ffn"))
        return f"| {self.arch} | {self.model.name} | {blocks} | {compared} | {halves} | {refused or 'none'} |"


def refusals(lib: Library, path: Path, specs: Sequence[str]) -> list[str]:
    """Why each set is refused before anything is loaded, empty where it is not."""
    found = []
    for spec in specs:
        done = lib.c.llama_skip_check(str(path).encode(), spec.encode(), None, b"set", b"scale")
        found.append("" if done else lib.c.llama_skip_error().decode())
    return found


def arch_names(lib: Library) -> list[str]:
    """Every architecture that the library knows by name."""
    name = lib.c._Z13llm_arch_name8llm_arch
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.c_int]
    found: list[str] = []
    while not found or found[-1] != "(unknown)":
        found.append(name(len(found)).decode())
    return found[:-1]


def untested_file(path: Path) -> Path:
    """A file of an architecture that is not in the matrix: hyperparameters, no tensors."""
    recipe = RECIPES["dflash"]
    metadata = [entry("tokenizer.ggml.model", "no_vocab")]
    for key, value in {**COMMON, "block_count": recipe.n_layer, "vocab_size": 8, **recipe.metadata}.items():
        metadata.append(entry(f"{recipe.arch}.{key}", value))
    return write(path, recipe.arch, metadata, {})


def check_set(
    stock: Build, row: Row, i: int, folder: Path, whole: np.ndarray, got: list[list[np.ndarray | str]]
) -> None:
    """got: for loading without the set and for masking it, what came of each setting of flash attention."""
    chosen, refusal, model = row.sets[i], row.refusals[i], row.model
    where = f"{model.name}, {chosen.name} ({chosen.spec})"
    if refusal:
        reason = refusal.partition(": ")[2]
        for found in got[0] + got[1]:
            assert isinstance(found, str) and reason in found, f"{where}: not refused with '{reason}'"
        return
    kind = reference(model, chosen)
    expected: list[np.ndarray | str] = got[0]
    if kind:
        file = (zeroed if kind == "zeroed" else pruned)(model, folder / "reference.gguf", chosen.blocks)
        expected = stock.worker.call(outcomes, file, embeddings=model.arch in EMBEDDINGS, flashes=FLASHES)[0]
    for way, rows in zip(("left out at load", "masked"), got, strict=True):
        for flash, found, wanted in zip(FLASHES, rows, expected, strict=True):
            what = f"{where}, {way}, flash attention {flash}"
            assert not isinstance(wanted, str), f"{what}: the reference says {wanted}"
            assert not isinstance(found, str), f"{what}: {found}"
            assert np.isfinite(found).all(), what
            assert np.array_equal(found, wanted), f"{what}: off by {np.abs(found - wanted).max()}"
            assert not np.array_equal(found, whole), f"{what}: leaving out changes nothing"


def check(stock: Build, ours: Build, bases: dict[str, Base], name: str, folder: Path, *, every: bool) -> Row:
    """Compare one model's sets, all of them or the few of a default run, and return its row of the table."""
    model = make(stock, folder, bases, name)
    path = write(folder / "model.gguf", model.arch, model.metadata, model.tensors)
    embeddings = model.arch in EMBEDDINGS
    all_sets = sets(model, every=True)
    row = Row(model, all_sets, ours.worker.call(refusals, path, [s.spec for s in all_sets]))
    if row.whole:
        chosen = [0]
        whole = np.zeros(0)
        masks = [[row.refusals[0]] * 2]
    else:
        row = replace(row, halves=reasons(ours, path, model.n_layer))
        few = set(sets(model, every=False))
        chosen = [i for i, s in enumerate(all_sets) if every or s in few]
        whole = stock.worker.call(outcomes, path, embeddings=embeddings, flashes=("off",))[0][0]
        specs = [None, *(all_sets[i].spec for i in chosen)]
        plain, *masks = ours.worker.call(outcomes, path, masks=specs, embeddings=embeddings, flashes=FLASHES)
        assert np.array_equal(plain[0], whole), f"{name}: not upstream's with nothing left out"
    for i, masked in zip(chosen, masks, strict=True):
        override = {"skip.layers": all_sets[i].spec}
        loaded = ours.worker.call(outcomes, path, override, embeddings=embeddings, flashes=FLASHES)[0]
        check_set(stock, row, i, folder, whole, [loaded, masked])
    return row


INTRO = """# Architectures

Written by `PYTHONPATH=tests python -m support.matrix.architectures --write`;
`tests/matrix/test_architectures.py` fails when it is stale.

For each architecture tiny random models, with every set of: a middle block, the first, the last, the
last two, every second, each single one, three random sets, all blocks of one kind. A prompt batch with
output rows at several positions, then single tokens, flash attention off and on, the blocks left out at
load and by a mask: equal bit for bit, on the CPU, to what the unpatched library computes from the
zeroed file (what the blocks add to the residual stream is zero) or from the pruned file (the blocks are
gone, the others renumbered: for blocks that mix several streams or norm the stream). "Run only": under
new numbers the kept blocks would be others, so no file says what is right; masked and left out are
compared with each other. Additions of a block left out go, a factor on the whole stream stays (RWKV 6's
halving, Gemma 4's `layer_output_scale`).

Halves: which blocks can leave out their attention (`:attn`) or their feed-forward (`:ffn`) alone.
`tests/matrix/test_half_architectures.py` compares each single one, every second, all of them, random mixes,
and mixes with whole blocks in the same way: to the file in which the last products of these halves are zero.
"""


def document(rows: list[Row], names: list[str]) -> str:
    whole = sorted({r.arch for r in rows if r.whole})
    tested = {r.arch for r in rows} - set(whole)
    untested = [n for n in names if n not in tested and n not in whole]
    alone = [
        len({r.arch for r in rows if not r.whole and not all(r.halves[half])}) for half in ("attn", "ffn")
    ]
    counts = (
        f"{len(tested)} architectures are compared, {len(whole)} are refused as a whole "
        f"({', '.join(whole)}), "
        f"{len(untested)} are untested and need `--skip-untested`: {', '.join(sorted(untested))}. "
        f"Attentions can go alone in {alone[0]} of those compared, feed-forwards in {alone[1]}."
    )
    odd = "\n".join(
        f"- `{name}`, of upstream's generator, is not among them: {why}." for name, why in MALFORMED.items()
    )
    titles = "architecture", "model", "blocks", "sets compared", "attentions", "feed-forwards", "sets refused"
    head = f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|"
    table = "\n".join([head, *(r.text() for r in sorted(rows, key=lambda r: (r.arch, r.model.name)))])
    return "\n".join([INTRO, textwrap.fill(counts, 120), "", odd, "", table, ""])


def header_of(names: set[str]) -> str:
    quoted = textwrap.fill(
        ", ".join(f'"{n}"' for n in sorted(names)) + ",",
        112,
        initial_indent="    ",
        subsequent_indent="    ",
        break_on_hyphens=False,
    )
    return (
        "#pragma once\n\n// The architectures that the tests compare; "
        "tests/support/matrix/architectures.py --write writes them here.\n// clang-format off\n"
        f"static const char * const tested_archs[] = {{\n{quoted}\n}};\n"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--write", action="store_true", help="write the table and the list that the library has"
    )
    parser.add_argument("models", nargs="*", help="models of the matrix (default: all)")
    args = parser.parse_args(argv)
    stock, ours = builds.stock(), builds.ours()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bases = generated(stock, folder)
        rows, failed = [], 0
        for name in args.models or MODELS:
            try:
                rows.append(check(stock, ours, bases, name, folder, every=True))
                print(rows[-1].text())
            except Exception as err:
                failed += 1
                print(f"error: {name}: {err}", file=sys.stderr)
        if args.write and not failed and not args.models:
            names = ours.worker.call(arch_names)
            DOCS.parent.mkdir(exist_ok=True)
            DOCS.write_text(document(rows, names))
            TESTED.write_text(header_of({r.arch for r in rows if not r.whole}))
    stock.worker.close()
    ours.worker.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
