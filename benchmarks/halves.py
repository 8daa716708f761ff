"""What halves of blocks add to a choice of whole ones: KL divergence on the same bytes, of weights and of KV
cache.

    python benchmarks/halves.py MODEL... [-f TEXT] [--judge TEXT] [-d FOLDER]

Three paths of `llama-skip score` on the first --tokens of TEXT: over blocks, over blocks and halves by what
they cost for a byte, and the same for a byte of KV cache. At each share of the blocks the beginnings are
compared that leave out at most as many bytes as the path over blocks does, on another text. Bounds on KL
divergence, mixed over blocks: 0.95 where the sets differ, and never above 1.02. FOLDER keeps the scores, and
what is there is not made again. The exit code is 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import choice
from llama_skip.eval.evaluate import evaluate
from llama_skip.files.identity import identify
from llama_skip.score.file import Score, share_of_blocks
from llama_skip.score.score import score_model
from llama_skip.skipset import Unit, block_of, ranges_text

MOST, DIFFERENT = 1.02, 0.95  # of the divergence of the path over blocks
PATHS: dict[str, dict[str, Any]] = {
    "blocks": {},
    "blocks and halves": {"halves": True, "per": "weights"},
    "for the KV cache": {"halves": True, "per": "kv"},
}


def scores(model: Path, args: argparse.Namespace) -> dict[str, Score]:
    """Return the three paths."""
    n_path = share_of_blocks(choice.SHARES[-1], identify(model).n_layer)
    found = {}
    for way, options in PATHS.items():
        name = ".".join([model.stem, *map(str, options.values())])
        found[way] = score_model(
            model,
            text=args.file,
            output=args.folder / f"{name}.score.json",
            n_tokens=args.tokens,
            n_ctx=args.ctx_size,
            n_path=n_path,
            n_threads=args.threads,
            n_threads_batch=args.threads,
            show_progress=True,
            **options,
        )
    return found


def kv_bytes(score: Score, units: list[Unit]) -> float:
    """Return the bytes of KV cache a token that a set saves."""
    saved = {block_of(unit) for unit in units if isinstance(unit, int) or unit[1] == "attn"}
    return sum(score.blocks[il].kv_bytes_per_token for il in saved)


def beginning(score: Score, most: float, way: str) -> tuple[list[Unit], int]:
    """Return the longest beginning of a path with at most so many bytes, and its bytes of weights."""
    best: list[Unit] = []
    n_bytes = 0
    for n, step in enumerate(score.path, 1):
        units = [step.unit for step in score.path[:n]]
        if (kv_bytes(score, units) if way == "for the KV cache" else step.bytes) <= most:
            best, n_bytes = units, step.bytes
    return best, n_bytes


def rows(model: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each share and path of a model."""
    found = scores(model, args)
    blocks = found["blocks"]
    made: list[dict[str, Any]] = []
    for share in choice.SHARES:
        n = share_of_blocks(share, blocks.model.n_layer)
        out: list[Unit] = [step.block for step in blocks.path[:n]]
        limits = {way: blocks.path[n - 1].bytes for way in PATHS} | {
            "for the KV cache": kv_bytes(blocks, out)
        }
        for way, score in found.items():
            units, n_bytes = beginning(score, limits[way], way)
            kv = kv_bytes(score, units)
            made.append({"share": share, "way": way, "set": ranges_text(units), "bytes": n_bytes, "kv": kv})
    with TemporaryDirectory() as folder:
        judge = Path(folder) / "judge.txt"
        judge.write_bytes(choice.judging_text(args))
        evaluation = evaluate(
            model,
            skip_layers=sorted({row["set"] for row in made}),
            text=judge,
            n_windows=args.judge_tokens // args.ctx_size,
            n_ctx=args.ctx_size,
            speed=False,
            n_threads=args.threads,
            n_threads_batch=args.threads,
            show_progress=True,
        )
    by_set = {row.skip_layers: row for row in evaluation.rows}
    for row in made:
        measured = by_set[row["set"]]
        row |= {"perplexity": measured.perplexity, "kld": measured.kld, "error": measured.kld_error}
        least = next(r for r in made if (r["share"], r["way"]) == (row["share"], "blocks"))
        row["ratio"] = row["kld"] / least["kld"]
        bound = DIFFERENT if row["set"] != least["set"] else MOST
        row["missed"] = row["way"] == "blocks and halves" and row["ratio"] > bound
    return made


def table(model: Path, found: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    yield f"{model.name}\n"
    head = ["share", "path", "left out", "MiB", "KV KiB a token", "perplexity", "KL", "of blocks alone"]
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in found:
        cells = [f"{row['share']:.0%}", row["way"], row["set"], f"{row['bytes'] / 2**20:.1f}"]
        cells += [f"{row['kv'] / 2**10:.1f}", f"{row['perplexity']:,.2f}", f"{row['kld']:.3f}"]
        cells += [
            "" if row["way"] == "blocks" else f"{row['ratio']:.3f}{' (missed)' if row['missed'] else ''}"
        ]
        yield f"| {' | '.join(cells)} |"


def main(argv: list[str] | None = None) -> int:
    flags = choice.parser(__doc__)
    flags.add_argument(
        "--judge-tokens", type=int, default=8192, metavar="N", help="to judge on (default: 8192)"
    )
    return choice.run(flags, argv, rows, table)


if __name__ == "__main__":
    sys.exit(main())
