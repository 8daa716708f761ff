"""`llama-skip heal`: a bypass for each gap of a plan, fitted on the model's own hidden states."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llama_skip.bypass import bypass
from llama_skip.cli.command import Parser, run
from llama_skip.cli.options import add_model_options, model_options
from llama_skip.errors import MIB, ArgumentError
from llama_skip.heal.heal import N_TOKENS, OWN_WRITING, heal_plan
from llama_skip.plan.file import Plan

EPILOG = """The plan is used as --skip-layers @FILE; a bypass with tensors makes it a GGUF file, else it is
JSON. FILE.part keeps what is done after each gap, and the same command goes on from there."""


def main(argv: Sequence[str] | None = None) -> int:
    """Heal a plan and say what stands in its gaps."""
    args = _parser().parse_args(argv)
    return run(lambda: _heal(args))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="llama-skip heal", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("model", metavar="MODEL", help="the full model, a GGUF file")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--plan", metavar="FILE", help="a plan file")
    what.add_argument("--skip-layers", metavar="SPEC", help="the blocks to leave out")
    add("-f", "--file", metavar="TEXT", help="text to fit on (default: the model's own writing)")
    add(
        "--tokens",
        metavar="N",
        type=int,
        default=N_TOKENS,
        help=f"tokens to fit on at most (default: {N_TOKENS})",
    )
    add(
        "--own-writing",
        metavar="SHARE",
        type=float,
        default=OWN_WRITING,
        help=f"share of these that the model writes itself beside TEXT (default: {OWN_WRITING})",
    )
    add("--rank", metavar="R|auto", default="auto", help="rank of the linear maps at most (default: auto)")
    add("-o", "--output", metavar="FILE", help="the plan to write (default: MODEL.heal.gguf here)")
    add_model_options(parser)
    return parser


def _heal(args: argparse.Namespace) -> int:
    if args.rank != "auto" and not args.rank.isdecimal():
        raise ArgumentError("rank", f"{args.rank}: expected auto, or 1 or more")
    rank = None if args.rank == "auto" else int(args.rank)
    options = model_options(args)
    output = args.output or f"{Path(args.model).stem}.heal.gguf"
    plan = heal_plan(
        args.model,
        plan=args.plan,
        skip_layers=args.skip_layers,
        text=args.file,
        output=output,
        rank=rank,
        n_tokens=args.tokens,
        own_writing=args.own_writing,
        show_progress=True,
        log=lambda line: print(line, file=sys.stderr),
        **options,
    )
    print(f"{output}: {described(plan)}")
    return 0


def described(plan: Plan) -> str:
    """Return what stands in the gaps of a plan."""
    parts = [f"scale {plan.skip_scale}"] if plan.skip_scale else []
    parts += [bypass.described(plan.bypass)] if plan.bypass else []
    n_bytes = sum(part.n_bytes for part in plan.bypass)
    size = f", {n_bytes / MIB:.2f} MiB" if n_bytes else ""
    return f"blocks {plan.skip_layers} left out, {', '.join(parts) or 'identity'}{size}"
