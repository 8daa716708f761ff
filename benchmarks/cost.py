"""What the greedy path takes with the shortcuts of `llama-skip score` and without, in one run.

    python benchmarks/cost.py MODEL [-f TEXT] [--tokens N] [--fraction F] [--threads N] [--windows W]
    python benchmarks/cost.py MODEL --halves [--per weights|kv|time] [--pairs N] [-f TEXT] [--tokens N] ...
    python benchmarks/cost.py MODEL --heal [--pairs N] [-f TEXT] [--tokens N] ...

Without shortcuts each candidate of each step is measured on all tokens, and the full model once a step: the
same work for each window of the text, hours in all. With --windows it is done on the first W, and its time is
scaled to all.

With --halves: what a path over blocks and halves takes, beside one over blocks to the same depth, in turn, N
times; the medians. With --heal: what `llama-skip plan --heal --fraction F` takes, all of it, beside `score`
to the same depth on the same tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from llama_skip.errors import MIB
from llama_skip.files.identity import identify
from llama_skip.heal.choose import plan_healed
from llama_skip.model.processors import n_processors
from llama_skip.plan.choose import plan_blocks
from llama_skip.score.file import share_of_blocks
from llama_skip.score.score import score_model
from llama_skip.score.sizes import PER
from llama_skip.skipset import ranges_text

KINDS = ("wall", "cpu")


def timed(
    args: argparse.Namespace, label: str, n_path: int, *, output: str | None = None, **options: Any
) -> dict[str, Any]:
    """Return the score's path, and the seconds of wall and processor time that it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    score = score_model(
        args.model,
        text=args.file,
        output=output,
        n_ctx=args.ctx_size,
        n_path=n_path,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        show_progress=True,
        **{"n_tokens": args.tokens, **options},
    )
    found = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    print(f"{label}: {found['wall']:.0f} s, {found['cpu']:.0f} s of processor time", file=sys.stderr)
    return {**found, "path": [asdict(step) for step in score.path], "layers": [s.unit for s in score.path]}


def with_halves(args: argparse.Namespace, n_path: int) -> int:
    """Measure a path over blocks and halves beside one over blocks, and print what it costs."""
    found: dict[str, list[dict[str, Any]]] = {"blocks": [], "halves": []}
    for _ in range(args.pairs):
        found["blocks"].append(timed(args, "blocks", n_path))
        found["halves"].append(timed(args, "halves", n_path, halves=True, per=args.per))
    times = {key: {way: median(run[key] for run in runs) for way, runs in found.items()} for key in KINDS}
    ratios = {key: of["halves"] / of["blocks"] for key, of in times.items()}
    if args.json:
        print(json.dumps({"model": Path(args.model).name, **found, "ratio": ratios}))
        return 0
    print(f"{Path(args.model).name}, {args.tokens} tokens, {n_path} blocks, {args.threads} threads")
    print(f"processor time with halves / blocks alone: {ratios['cpu']:.2f} ({args.pairs} pairs); goal 2")
    for way, runs in found.items():
        last, cpu = runs[0]["path"][-1], times["cpu"][way]
        left_out = f"{ranges_text(runs[0]['layers'])}, {last['bytes'] / MIB:.1f} MiB"
        print(
            f"{way}: {cpu:.0f} s, {len(runs[0]['path'])} steps, {left_out}: perplexity "
            f"{last['perplexity']:.3f}, KL divergence {last['kld']:.4f}"
        )
    return 0


def with_healing(args: argparse.Namespace, n_path: int) -> int:
    """Measure a healed plan beside a path to the same depth, and print what it costs."""
    found: dict[str, list[dict[str, Any]]] = {"score": [], "plan --heal": []}
    options = {"n_threads": args.threads, "n_threads_batch": args.threads, "text": args.file}
    for _ in range(args.pairs):
        found["score"].append(timed(args, "score", n_path))
        with TemporaryDirectory() as folder:
            wall, cpu = time.perf_counter(), time.process_time()
            score = score_model(
                args.model, n_tokens=args.tokens, n_ctx=args.ctx_size, n_path=n_path, heal=True, **options
            )
            plan = plan_healed(
                args.model,
                score,
                plan_blocks(score, blocks=n_path),
                output=Path(folder) / "healed.gguf",
                log=lambda line: print(line, file=sys.stderr),
                **options,
            )
        times = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        found["plan --heal"].append({**times, "skip_layers": plan.skip_layers})
    ratios = {
        key: median(run[key] for run in found["plan --heal"]) / median(run[key] for run in found["score"])
        for key in KINDS
    }
    if args.json:
        print(json.dumps({"model": Path(args.model).name, **found, "ratio": ratios}))
        return 0
    print(f"{Path(args.model).name}, {args.tokens} tokens, {n_path} blocks, {args.threads} threads")
    print(f"processor time of plan --heal / score: {ratios['cpu']:.2f} ({args.pairs} pairs); goal 2")
    for way, runs in found.items():
        print(f"{way}: {median(run['cpu'] for run in runs):.0f} s")
    return 0


def main() -> int:
    """Measure both ways and print their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument(
        "-f", "--file", default=os.environ.get("LLAMA_SKIP_TEXT"), help="default: LLAMA_SKIP_TEXT"
    )
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("-c", "--ctx-size", type=int, default=512)
    parser.add_argument("--fraction", type=float, default=0.3)
    parser.add_argument("-t", "--threads", type=int, default=n_processors())
    parser.add_argument("--windows", type=int, help="windows of the way without shortcuts; default: all")
    parser.add_argument("-o", "--output", help="keep the score of the way with shortcuts")
    parser.add_argument("--halves", action="store_true", help="compare with a path over halves, too")
    parser.add_argument("--per", choices=PER, default=PER[0], help=f"with --halves (default: {PER[0]})")
    parser.add_argument("--heal", action="store_true", help="compare with a healed plan")
    parser.add_argument(
        "--pairs", type=int, default=1, help="with --halves or --heal: how often (default: 1)"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.file is None:
        parser.error("name a text with -f, or in LLAMA_SKIP_TEXT")
    if args.output is not None and Path(args.output).exists():
        parser.error(f"{args.output} exists, so there would be nothing to measure")
    n_path = share_of_blocks(args.fraction, identify(args.model).n_layer)
    if args.halves:
        return with_halves(args, n_path)
    if args.heal:
        return with_healing(args, n_path)
    n_windows = args.tokens // args.ctx_size
    some = min(args.windows or n_windows, n_windows)
    fast = timed(args, "with shortcuts", n_path, output=args.output)
    slow = timed(args, "without", n_path, n_tokens=some * args.ctx_size, shortcuts=False)
    slow.update({key: slow[key] * n_windows / some for key in ("wall", "cpu")})
    ratios = {key: fast[key] / slow[key] for key in ("wall", "cpu")}
    if args.json:
        print(json.dumps({"model": Path(args.model).name, "with": fast, "without": slow, "ratio": ratios}))
        return 0
    print(f"{Path(args.model).name}, {args.tokens} tokens, {n_path} blocks, {args.threads} threads")
    if some < n_windows:
        print(f"without shortcuts: {some} of {n_windows} windows, time scaled to all")
    print(
        f"time with shortcuts / without: {ratios['wall']:.3f} (processor time {ratios['cpu']:.3f}); goal 0.2"
    )
    for label, found in (("with", fast), ("without", slow)):
        last = found["path"][-1]
        order = ",".join(map(str, found["layers"]))
        print(f"{label:8s} {order}: perplexity {last['perplexity']:.3f}, KL divergence {last['kld']:.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
