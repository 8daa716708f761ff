"""`llama-skip score`: what each block costs, and the order in which blocks go."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from llama_skip.cli.command import Parser, run
from llama_skip.cli.options import add_halves, add_model_options, model_options, score_name
from llama_skip.errors import MIB
from llama_skip.files.identity import identify
from llama_skip.files.store import part_path
from llama_skip.files.table import aligned
from llama_skip.score.file import BlockScore, Score, share_of_blocks
from llama_skip.score.score import FRACTION, N_HEALED, N_TOKENS, score_model
from llama_skip.score.sizes import PER
from llama_skip.skipset import unit_text


def main(argv: Sequence[str] | None = None) -> int:
    """Score a model and print what was found."""
    args = _parser().parse_args(argv)
    return run(lambda: _score(args))


def _parser() -> Parser:
    parser = Parser(prog="llama-skip score", description=__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a GGUF file")
    add("-f", "--file", metavar="TEXT", help="text to calibrate on (default: the model's own writing)")
    add("-o", "--output", metavar="FILE", help="score file (default: MODEL's name with .score.json, here)")
    add(
        "--tokens",
        metavar="N",
        type=int,
        help=f"tokens of TEXT (default: {N_TOKENS}; with --heal {N_HEALED}, of which an eighth chooses)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--blocks", metavar="K", type=int, help="blocks on the greedy path")
    length.add_argument(
        "--fraction",
        metavar="F",
        type=float,
        default=FRACTION,
        help=f"share of the blocks (default: {FRACTION})",
    )
    add(
        "--no-shortcuts",
        action="store_true",
        help="measure each candidate on all tokens from the first block on",
    )
    add(
        "--heal",
        action="store_true",
        help="put a linear map into each gap while choosing, so that blocks go that heal well; for "
        "`llama-skip plan --heal`",
    )
    add_halves(parser)
    add("--json", action="store_true", help="print the score file")
    add_model_options(parser)
    return parser


def _score(args: argparse.Namespace) -> int:
    options = model_options(args)
    n_ctx = options.pop("n_ctx")
    n_path = args.blocks
    if n_path is None:
        n_path = share_of_blocks(args.fraction, identify(args.model).n_layer)
    output = args.output or score_name(args.model, heal=args.heal, halves=args.halves, per=args.per)
    per = f", also halves, per {args.per or PER[0]}" if args.halves else ""
    n_tokens = (N_HEALED if args.heal else N_TOKENS) if args.tokens is None else args.tokens
    print(f"score: {args.model}, {n_tokens} tokens, {n_path} blocks{per}", file=sys.stderr)
    try:
        score = score_model(
            args.model,
            text=args.file,
            output=output,
            n_tokens=n_tokens,
            n_ctx=n_ctx,
            n_path=n_path,
            shortcuts=not args.no_shortcuts,
            heal=args.heal,
            halves=args.halves,
            per=args.per,
            show_progress=True,
            **options,
        )
    except KeyboardInterrupt:
        if Path(output).exists() or part_path(output).exists():
            print(f"stopped; the same command goes on from {output}", file=sys.stderr)
        raise
    print(f"written: {output}", file=sys.stderr)
    print(Path(output).read_text(encoding="utf-8") if args.json else "\n".join(table(score)))
    return 0


def table(score: Score) -> Iterator[str]:
    """Yield the lines of what a person wants to see of a score."""
    text = score.text
    yield f"{score.model.name}: {score.model.n_layer} blocks, {score.model.file_type}; {text.name}"
    yield f"full model: perplexity {score.perplexity:.3f} +- {score.perplexity_error:.3f}"
    yield ""
    head = ["block", "influence", "norm in", "norm out", "perplexity", "KL divergence", "MiB", ""]
    yield from aligned([head, *map(_block_cells, score.alone)])
    yield ""
    head = ["step", "block", "perplexity", "KL divergence", "same top token", "MiB left out"]
    steps = [
        [
            *(str(i), unit_text(step.unit), f"{step.perplexity:.2f}", f"{step.kld:.4f}", f"{step.top1:.3f}"),
            f"{step.bytes / MIB:.2f}",
        ]
        for i, step in enumerate(score.path, 1)
    ]
    yield from aligned([head, *steps])


def _block_cells(block: BlockScore) -> list[str]:
    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return [
        unit_text(block.unit),
        cell(block.influence, ".4f"),
        cell(block.norm_in, ".1f"),
        cell(block.norm_out, ".1f"),
        cell(block.perplexity, ".2f"),
        cell(block.kld, ".4f"),
        f"{block.weights_bytes / MIB:.2f}",
        f"cannot go: {block.refused}" if block.refused else "",
    ]
