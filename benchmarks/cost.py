"""What the greedy path takes with the shortcuts of `llama-skip score` and without, in one run.

    python benchmarks/cost.py MODEL [-f TEXT] [--tokens N] [--fraction F] [--threads N] [--windows W]

Without shortcuts each candidate of each step is measured on all tokens, and the full model once a step: the
same work for each window of the text, hours in all. With --windows it is done on the first W, and its time is
scaled to all.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llama_skip.files.identity import identify
from llama_skip.model.processors import n_processors
from llama_skip.score.file import share_of_blocks
from llama_skip.score.score import score_model


def timed(args: argparse.Namespace, n_path: int, *, n_tokens: int, shortcuts: bool) -> dict[str, Any]:
    """Return the score's path, and the seconds of wall and processor time that it took."""
    label = "with shortcuts" if shortcuts else "without"
    wall, cpu = time.perf_counter(), time.process_time()
    score = score_model(
        args.model,
        text=args.file,
        output=args.output if shortcuts else None,
        n_tokens=n_tokens,
        n_ctx=args.ctx_size,
        n_path=n_path,
        shortcuts=shortcuts,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        show_progress=True,
    )
    found = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    print(f"{label}: {found['wall']:.0f} s, {found['cpu']:.0f} s of processor time", file=sys.stderr)
    return {**found, "path": [asdict(step) for step in score.path]}


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
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.file is None:
        parser.error("name a text with -f, or in LLAMA_SKIP_TEXT")
    if args.output is not None and Path(args.output).exists():
        parser.error(f"{args.output} exists, so there would be nothing to measure")
    n_windows = args.tokens // args.ctx_size
    some = min(args.windows or n_windows, n_windows)
    n_path = share_of_blocks(args.fraction, identify(args.model).n_layer)
    fast = timed(args, n_path, n_tokens=args.tokens, shortcuts=True)
    slow = timed(args, n_path, n_tokens=some * args.ctx_size, shortcuts=False)
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
        order = ",".join(str(step["block"]) for step in found["path"])
        print(f"{label:8s} {order}: perplexity {last['perplexity']:.3f}, KL divergence {last['kld']:.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
