"""The command `llama-skip`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from llama_skip.cli.command import Parser

VERBS = {
    "demo": "measure what leaving blocks out costs and saves",
    "score": "measure what each block costs, and the order in which blocks go",
    "plan": "choose the blocks to leave out for a size, memory, cost or speed",
    "eval": "measure what plans, sets and other files cost on a text, and what they save",
    "bench": "measure what blocks on disk cost and save, beside leaving them out",
    "heal": "fit what stands in the gaps of a plan",
    "harness": "run lm-eval's tasks on a model with blocks left out",
    "bake": "write a file without some blocks for the unpatched llama.cpp",
    "annotate": "write scores and named plans into a model, or beside it",
    "import": "make a plan from what another project wrote",
    "report": "show a score, with plans and evaluations beside it, as a page or a picture",
    "doctor": "say which back-ends and devices there are",
}
MODULES = {"import": "import_"}


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from llama_skip import _core

        print(f"llama-skip {_core.version()} (llama.cpp {_core.upstream()})")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; each is a module of this folder with a main(argv) that returns the exit code."""
    parser = Parser(
        prog="llama-skip",
        description="Run GGUF models with chosen transformer blocks left out at load time.",
        epilog="`llama-skip VERB --help` explains a verb. llama.cpp's tools take --skip-layers.",
    )
    parser.add_argument("--version", nargs=0, action=_Version, help="print the version")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, text in VERBS.items():
        verbs.add_parser(name, help=text, add_help=False)
    args, rest = parser.parse_known_args(argv)
    code: int = import_module(f"llama_skip.cli.{MODULES.get(args.verb, args.verb)}").main(rest)
    return code
