"""`llama-skip import`: plans from what other projects write.

- layerinfo.json of the public llama.cpp fork with --skip-layers: an imatrix score for each block, and lists
  for some numbers of blocks.
- skip_layers.json of SWIFT and of self-speculative decoding: attention and feed-forward layers that a draft
  leaves out, by model and task; a block of which both go is left out whole.
- block_order.csv of shortened-llm: one row of blocks, the first to go first.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llama_skip.cli.command import Parser, run
from llama_skip.plan.file import write_plan
from llama_skip.plan.imports import import_plan


def main(argv: Sequence[str] | None = None) -> int:
    """Write a plan."""
    parser = Parser(
        prog="llama-skip import", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="a layerinfo.json, skip_layers.json or block_order.csv")
    add("--model", metavar="MODEL", required=True, help="the GGUF file that the plan is for")
    add("--blocks", metavar="K", type=int, help="how many blocks to leave out (not for skip_layers.json)")
    add("--entry", metavar="NAME", help="which entry of a skip_layers.json")
    add("-o", "--output", metavar="PLAN", required=True, help="the plan file to write")
    args = parser.parse_args(argv)
    return run(lambda: _import(args))


def _import(args: argparse.Namespace) -> int:
    plan = import_plan(args.file, args.model, n_blocks=args.blocks, entry=args.entry)
    write_plan(args.output, plan)
    print(f"{args.output}: --skip-layers {plan.skip_layers}")
    return 0
