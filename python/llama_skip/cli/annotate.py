"""`llama-skip annotate`: scores and named plans as metadata of a model, or of a small file beside it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from llama_skip.cli.command import Parser, UsageError, run
from llama_skip.files.store import StrPath
from llama_skip.plan.annotate import annotate_model
from llama_skip.plan.file import Plan


def main(argv: Sequence[str] | None = None) -> int:
    """Annotate a model and say what is in the file now."""
    parser = Parser(prog="llama-skip annotate", description=__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a GGUF file, the first one of a split model")
    add("--score", metavar="SCORE", help="a score file")
    add(
        "--plan", metavar="NAME=PLAN", action="append", default=[], help="a plan file and its name; repeat it"
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("-o", "--output", metavar="FILE", help="write a copy of the model")
    where.add_argument("--sidecar", action="store_true", help="write MODEL's .skip.gguf beside it")
    args = parser.parse_args(argv)
    return run(lambda: _annotate(args))


def _annotate(args: argparse.Namespace) -> int:
    if not args.score and not args.plan:
        raise UsageError("name a --score, or a --plan")
    plans: dict[str, Plan | StrPath] = {}
    for item in args.plan:
        name, sign, path = item.partition("=")
        if not sign or name in plans:
            raise UsageError(f"--plan {item}: expected NAME=PLAN, each name once")
        plans[name] = path
    done = annotate_model(args.model, score=args.score, plans=plans, output=args.output, verbose=True)
    for note in done.notes:
        print(note, file=sys.stderr)
    content = ["a score"] * done.has_score + [f"@{name}" for name in done.plans]
    print(f"{os.fspath(done.path)}: {', '.join(content)}")
    return 0
