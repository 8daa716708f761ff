"""`llama-skip report`: a score, and plans and evaluations beside it, as one HTML file or a picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llama_skip.cli.command import Parser, run
from llama_skip.report.report import _is_png, _write


def main(argv: Sequence[str] | None = None) -> int:
    """Write a report of a score."""
    args = _parser().parse_args(argv)
    return run(lambda: _report(args))


def _parser() -> Parser:
    parser = Parser(prog="llama-skip report", description=__doc__)
    add = parser.add_argument
    add("score", metavar="SCORE", help="file of `llama-skip score`")
    add("others", metavar="FILE", nargs="*", help="plans and evaluations of the same model")
    add("-o", "--output", metavar="HTML", help="report (default: SCORE's name with .html, here)")
    add("--png", metavar="FILE", help="write the charts as a picture too")
    return parser


def _report(args: argparse.Namespace) -> int:
    output = args.output or f"{Path(args.score).stem}.html"
    files = {output: _is_png(output)} | ({args.png: True} if args.png else {})
    notes = _write(args.score, args.others, files)
    for path in files:
        print(path)
    for note in notes:
        print(note, file=sys.stderr)
    return 0
