"""`llama-skip eval`: what plans and other files cost on a text, and what they save."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from llama_skip import _core
from llama_skip.cli.command import Parser, UsageError, run
from llama_skip.cli.options import add_model_options, add_text_options, model_options
from llama_skip.eval.evaluate import N_WINDOWS, evaluate
from llama_skip.eval.file import FORMAT, table, to_json


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the full model and what is to be compared with it, and print a table, or JSON."""
    args = _parser().parse_args(argv)
    return run(lambda: _eval(args))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="llama-skip eval", description=__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="the full model, a GGUF file")
    add("--skip-layers", metavar="SPEC", action="append", default=[], help="blocks to leave out; repeat it")
    add("--skip-scale", metavar="SPEC", help="what the gaps of each SPEC are scaled by")
    add("--plan", metavar="FILE", action="append", default=[], help="a plan file; repeat it")
    add("--also", metavar="FILE", action="append", default=[], help="another file to compare; repeat it")
    add_text_options(parser, N_WINDOWS)
    add("--no-speed", action="store_true", help="measure no speed")
    add("-o", "--output", metavar="FILE", help="write the results, and go on where FILE ends")
    add("--json", action="store_true", help="print JSON")
    add_model_options(parser)
    return parser


def _eval(args: argparse.Namespace) -> int:
    for layers in args.skip_layers:
        try:
            _core.check_skip(
                os.fsencode(args.model), layers, args.skip_scale or "", "--skip-layers", "--skip-scale"
            )
        except ValueError as err:
            raise UsageError(err) from None
    options = model_options(args)
    found = evaluate(
        args.model,
        args.skip_layers,
        skip_scale=args.skip_scale,
        plans=args.plan,
        also=args.also,
        text=args.file,
        n_windows=args.windows,
        speed=not args.no_speed,
        output=args.output,
        show_progress=True,
        log=lambda line: print(line, file=sys.stderr),
        **options,
    )
    if args.json:
        print(json.dumps({**FORMAT._asdict(), **to_json(found)}, indent=1))
        return 0
    print("\n".join(table(found.rows)))
    print(
        f"\nlower is better; KL divergence from the full model in nats per token; on {found.text.name}, "
        f"{found.text.n_windows} windows of {found.text.n_ctx} tokens ({found.text.n_scored} scored)"
    )
    return 0
