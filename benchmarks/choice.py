"""Perplexity of our choice of blocks against the published ways of choosing them, on two texts.

    python benchmarks/choice.py MODEL... [-f CALIBRATION] [--judge TEXT] [-d FOLDER] [--tokens N] [--json]

Each way chooses 10, 20 and 30 % of the blocks on the calibration text; then the same runtime, with run-time
masks, measures what is left on that text and on another one.

    greedy      the beginning of the path of `llama-skip score`, by KL divergence plus surprisal
    SLEB        exhaustive greedy search by perplexity
    one-shot    the blocks without which alone perplexity is lowest
    influence   the blocks of least influence (ShortGPT)
    angular     the run of blocks of least angular distance, mean over all tokens
    angular-1   the same over the last token of each window, as in the paper

All but the first come from sleb.py, which shares no code with the library and multiplies dequantised weights
in numpy. FOLDER gets MODEL's name with .score.json and .sleb.json, or has them from an earlier run; what is
not complete there is gone on with, which takes hours for the exhaustive search. Ratios are the greedy path's
perplexity divided by the other's. Bounds: 1.01 of SLEB's on the calibration text and 1.03 on the other; on
the other text 1.03 of the rest at 10 %, and below 1 at 20 and 30 %, but for equal sets. The exit code is 1
where one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sleb
from llama_skip import Llama
from llama_skip.files.identity import identify
from llama_skip.measure import perplexity
from llama_skip.model.processors import n_processors
from llama_skip.progress import progress
from llama_skip.score.file import Score, share_of_blocks
from llama_skip.score.score import score_model
from llama_skip.skipset import ranges_text

SHARES = (0.1, 0.2, 0.3)
TEXTS = ("calibration", "judging")

Rows = Callable[[Path, argparse.Namespace], list[dict[str, Any]]]
Table = Callable[[Path, list[dict[str, Any]]], Iterator[str]]


def choices(score: Score, found: dict[str, Any], n: int) -> dict[str, list[int]]:
    """Return the n blocks that each way leaves out.

    Args:
        score: ours.
        found: what sleb.py wrote.
        n: at most as many as both paths have.
    """

    def least(values: Sequence[float]) -> list[int]:
        return sorted(range(len(values)), key=values.__getitem__)[:n]

    def run(angular: Sequence[Sequence[float]]) -> list[int]:
        first = min(range(len(angular) - n + 1), key=lambda il: angular[il][n - 1])
        return list(range(first, first + n))

    return {
        "greedy": [step.block for step in score.path[:n]],
        "SLEB": [step["block"] for step in found["path"][:n]],
        "one-shot": least(found["one_shot"]),
        "influence": least(found["influence"]),
        "angular": run(found["angular"]),
        "angular-1": run(found["angular_last"]),
    }


def is_missed(ratio: float, way: str, text: str, share: float) -> bool:
    """Return whether our perplexity, divided by that of another way, is out of its bound."""
    if way == "SLEB":
        return ratio > (1.01 if text == "calibration" else 1.03)
    return text == "judging" and (ratio > 1.03 if share == SHARES[0] else ratio >= 1)


def compare(
    model: Path,
    score: Score,
    found: dict[str, Any],
    texts: dict[str, list[int]],
    *,
    n_ctx: int,
    n_threads: int,
) -> Iterator[dict[str, Any]]:
    """Yield a row for each share of the blocks and way of choosing them.

    Args:
        model: the GGUF file.
        score, found: as for choices().
        texts: tokens by the names in TEXTS.
        n_ctx: tokens in a window.
        n_threads: of the runtime.
    """
    n_layer = score.model.n_layer
    ways = {share: choices(score, found, share_of_blocks(share, n_layer)) for share in SHARES}
    sets = {frozenset[int](), *(frozenset(out) for way in ways.values() for out in way.values())}
    measured: dict[frozenset[int], dict[str, float]] = {}
    n_windows = sum(len(tokens) // n_ctx for tokens in texts.values())
    options = {"n_ctx": n_ctx, "n_threads": n_threads, "n_threads_batch": n_threads, "verbose": False}
    with progress(len(sets) * n_windows) as bar, Llama(model, **options) as llm:
        bos = llm.token_bos() if llm.adds_bos else None
        for out in sorted(sets, key=sorted):
            llm.reset()
            llm.set_mask(sorted(out))
            bar.say(ranges_text(sorted(out)) or "none")
            measured[out] = {
                name: perplexity.measure(llm, tokens, n_ctx=n_ctx, bos=bos, on_window=bar.step).value
                for name, tokens in texts.items()
            }
    yield {"share": 0.0, "way": "full model", "blocks": "none", **measured[frozenset()], "ratio": {}}
    for share, chosen in ways.items():
        ours = measured[frozenset(chosen["greedy"])]
        for way, out in chosen.items():
            theirs = measured[frozenset(out)]
            ratio = {name: ours[name] / theirs[name] for name in texts}
            yield {
                "share": share,
                "way": way,
                "blocks": ranges_text(sorted(out)),
                **theirs,
                "ratio": ratio,
                "missed": [
                    name
                    for name in texts
                    if set(out) != set(chosen["greedy"]) and is_missed(ratio[name], way, name, share)
                ],
            }


def table(model: Path, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    yield f"{model.name}\n"
    yield "| share | way | left out | calibration | ours / this | judging | ours / this |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        cells = [f"{row['share']:.0%}", row["way"], row["blocks"]]
        for text in TEXTS:
            cells.append(f"{row[text]:,.2f}")
            ratio = row["ratio"].get(text) if row["way"] != "greedy" else None
            missed = " (missed)" if text in row.get("missed", ()) else ""
            cells.append("" if ratio is None else f"{ratio:.3f}{missed}")
        yield f"| {' | '.join(cells)} |"


def scored(model: Path, args: argparse.Namespace) -> Score:
    """Return our score, made where that was not done."""
    return score_model(
        model,
        text=args.file,
        output=args.folder / f"{model.stem}.score.json",
        n_tokens=args.tokens,
        n_ctx=args.ctx_size,
        n_path=share_of_blocks(SHARES[-1], identify(model).n_layer),
        n_threads=args.threads,
        n_threads_batch=args.threads,
        show_progress=True,
    )


def chosen(model: Path, args: argparse.Namespace) -> tuple[Score, dict[str, Any]]:
    """Return our score and what sleb.py finds, made where that was not done."""
    score = scored(model, args)
    reference = args.folder / f"{model.stem}.sleb.json"
    flags = {
        "-f": args.file,
        "-o": reference,
        "--tokens": args.tokens,
        "--ctx": args.ctx_size,
        "--blocks": len(score.path),
        "--threads": args.threads,
    }
    sleb.main([str(model), *(str(word) for pair in flags.items() for word in pair)])
    found = json.loads(reference.read_text())
    if found["text"]["tokens_sha256"] != score.text.sha256:
        raise SystemExit(f"error: the score of {model} and {reference} were not made with the same tokens")
    return score, found


def judge(model: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of a model's table."""
    score, found = chosen(model, args)
    texts = {"calibration": args.file.read_bytes(), "judging": judging_text(args)}
    with Llama(model, vocab_only=True, verbose=False) as llm:
        tokens = {name: llm.tokenize(text)[: args.tokens] for name, text in texts.items()}
    return list(compare(model, score, found, tokens, n_ctx=args.ctx_size, n_threads=args.threads))


def choosing_text(args: argparse.Namespace) -> bytes:
    """Return the calibration text; of one that judges too, its first half."""
    text = bytes(args.file.read_bytes())
    return text if args.judge else text[: len(text) - len(judging_text(args))]


def judging_text(args: argparse.Namespace) -> bytes:
    """Return the text that --judge names, or the second half of the calibration text's file."""
    if args.judge:
        return bytes(args.judge.read_bytes())
    text = bytes(args.file.read_bytes())
    return text[text.index(b"\n", len(text) // 2) + 1 :]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return the flags of a benchmark that chooses on one text and judges on another."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("models", nargs="+", type=Path, metavar="MODEL")
    add("-f", "--file", type=Path, default=os.environ.get("LLAMA_SKIP_TEXT"), metavar="TEXT")
    add("--judge", type=Path, metavar="TEXT", help="default: the second half of -f's file")
    add("-d", "--folder", type=Path, default=Path(), help="of what is kept (default: here)")
    add("--tokens", type=int, default=4096, metavar="N", help="to choose on (default: 4096)")
    add("-c", "--ctx-size", type=int, default=512, metavar="N")
    add("-t", "--threads", type=int, default=n_processors(), metavar="N")
    add("--json", action="store_true")
    return made


def run(flags: argparse.ArgumentParser, argv: list[str] | None, rows: Rows, table: Table) -> int:
    """Print the rows of each model; 1 where a bound is missed."""
    args = flags.parse_args(argv)
    if args.file is None:
        flags.error("name a text with -f, or in LLAMA_SKIP_TEXT")
    args.file = Path(args.file)
    found = {model.name: rows(model, args) for model in args.models}
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        print("\n\n".join("\n".join(table(Path(name), of_model)) for name, of_model in found.items()))
    return int(any(row.get("missed") for of_model in found.values() for row in of_model))


def main(argv: list[str] | None = None) -> int:
    return run(parser(__doc__), argv, judge, table)


if __name__ == "__main__":
    sys.exit(main())
