"""`llama-skip bench`: what blocks on disk cost and save, beside leaving them out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from llama_skip.bench import chart as benchchart
from llama_skip.bench import file as benchfile
from llama_skip.bench.bench import CONTEXTS, N_ROUNDS, bench_model
from llama_skip.cli.command import Parser, UsageError, run
from llama_skip.cli.options import add_model_options, add_text_options, model_options
from llama_skip.eval.evaluate import N_WINDOWS
from llama_skip.files.store import check_writable, is_one_of, replacing


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table."""
    args = _parser().parse_args(argv)
    return run(lambda: _bench(args))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="llama-skip bench", description=__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a GGUF file")
    add("--disk-layers", metavar="SPEC", required=True, help="blocks that stay in the file")
    add("--plan", metavar="FILE", help="a plan whose blocks are left out for the last row, healed or not")
    add(
        "--contexts",
        metavar="N",
        type=int,
        nargs="+",
        default=list(CONTEXTS),
        help=f"lengths of prompts (default: {' '.join(map(str, CONTEXTS))})",
    )
    add_text_options(parser, N_WINDOWS)
    add(
        "--rounds",
        metavar="N",
        type=int,
        default=N_ROUNDS,
        help=f"how often each speed is measured (default: {N_ROUNDS})",
    )
    add("-o", "--output", metavar="FILE", help="write what is printed")
    add("--json", metavar="FILE", help="write everything that was measured as JSON")
    add("--png", metavar="FILE", help="write a picture of it")
    add_model_options(parser)
    return parser


def _bench(args: argparse.Namespace) -> int:
    options = model_options(args)
    if args.png:
        benchchart.check_drawing()
    outputs = [path for path in (args.output, args.json, args.png) if path]
    if len({os.path.realpath(path) for path in outputs}) < len(outputs):
        raise UsageError("-o, --json and --png need a file each")
    for path in outputs:
        if is_one_of(path, filter(None, (args.model, args.plan, args.file))):
            raise UsageError(f"{path} is what is measured, name another file to write")
        check_writable(path)
    found = bench_model(
        args.model,
        args.disk_layers,
        plan=args.plan,
        contexts=args.contexts,
        text=args.file,
        n_windows=args.windows,
        n_rounds=args.rounds,
        show_progress=True,
        log=lambda line: print(line, file=sys.stderr),
        **options,
    )
    lines = "\n".join([*benchfile.table(found), "", *benchfile.notes(found)])
    if args.json:
        benchfile.write_bench(args.json, found)
    if args.png:
        benchchart.write_png(args.png, found)
    if args.output:
        with replacing(args.output) as file:
            file.write(lines.encode() + b"\n")
    print(lines)
    return 0
