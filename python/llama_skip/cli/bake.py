"""`llama-skip bake`: a file without some blocks, for the unpatched llama.cpp, exact or refused."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llama_skip.bake.bake import bake_model
from llama_skip.cli.command import Parser, UsageError, run


def main(argv: Sequence[str] | None = None) -> int:
    """Bake a model and say what was written."""
    parser = Parser(prog="llama-skip bake", description=__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a GGUF file, the first one of a split model")
    add("--plan", metavar="PLAN", help="a plan file")
    add("--skip-layers", metavar="SPEC", help="the blocks to leave out, instead of a plan")
    add("--skip-scale", metavar="SPEC", help="what the gaps are scaled by (only 1 can be baked)")
    add(
        "--imatrix", metavar="FILE", help="the model's importance matrix; the new file's is written beside it"
    )
    add("-o", "--output", metavar="FILE", required=True, help="the file to write")
    args = parser.parse_args(argv)
    return run(lambda: _bake(args))


def _bake(args: argparse.Namespace) -> int:
    if (args.plan is None) == (args.skip_layers is None):
        raise UsageError("name either --plan or --skip-layers")
    baked = bake_model(
        args.model,
        args.output,
        plan=args.plan,
        skip_layers=args.skip_layers,
        skip_scale=args.skip_scale,
        imatrix=args.imatrix,
        verbose=True,
    )
    if baked.note:
        print(baked.note, file=sys.stderr)
    size = f"{baked.n_bytes / 2**20:.1f} MiB"
    print(f"{baked.path}: {len(baked.blocks)} blocks, without {baked.skip_layers}, {size}")
    if baked.imatrix is not None:
        print(f"{baked.imatrix}: its importance matrix")
    return 0
