"""Speed of a model with blocks left out, against the unpatched library: ratios of paired runs.

    python benchmarks/speed.py [--model FILE] [--skip-layers SPEC] [--contexts N ...] [--json]

Comparisons, each of runs that alternate within the same minute, so that what else the machine does
falls on both alike; a ratio is the median of the pairs' ratios.

    full         tokens/s with nothing left out, ours / unpatched                      at least 0.98
    ideal        tokens/s with a third of the blocks left out, ours / (full * bytes)   at least 0.97
                 or with halves of blocks, at short contexts                           at least 0.95
    pruned       the same, ours / unpatched with the physically pruned file            at least 0.99
    first token  time from load to the first token of a short prompt, pruned / ours, page cache cold and warm
                                                                                       at least 1

The ideal is the full model's speed times the bytes of weights a token reads, full over kept. No pruned file
stands for halves.

With --contexts instead: prompts of so many tokens and single tokens behind them, without the attention of
every second block and with all, flash attention on. What the attentions take is measured too, on the model
without any; without half of them half of that should be saved: ours / (full / (1 - share / 2)), at least 0.9.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from llama_skip.model.processors import n_processors

from comparison import builds
from comparison.libllama import Context, Library, Model, Override, Worker
from comparison.oracle import expand, left_out, tensors

N_GENERATE = 32
PROMPT = list(range(1000, 1016))

_open: dict[str, tuple[Model, Context]] = {}


def open_model(lib: Library, path: Path, overrides: Override, n_threads: int) -> None:
    if str((path, overrides)) not in _open:
        model = lib.model(path, overrides)
        ctx = model.context(n_threads=n_threads, n_threads_batch=n_threads)
        _open[str((path, overrides))] = model, ctx


def generate(lib: Library, path: Path, overrides: Override, n_threads: int) -> float:
    """Tokens per second of single-token decodes after a short prompt, of a model that is loaded already."""
    open_model(lib, path, overrides, n_threads)
    ctx = _open[str((path, overrides))][1]
    lib.c.llama_memory_clear(ctx.memory, False)
    ctx.decode(PROMPT)
    start = time.perf_counter()
    for token in range(2000, 2000 + N_GENERATE):
        ctx.decode([token])
    return N_GENERATE / (time.perf_counter() - start)


def first_token(lib: Library, path: Path, overrides: Override, n_threads: int, cold: bool) -> float:
    """Seconds from the start of loading to the logits of a prompt."""
    fd = os.open(path, os.O_RDONLY)
    if cold:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    else:
        while os.read(fd, 1 << 24):
            pass
    os.close(fd)
    start = time.perf_counter()
    model = lib.model(path, overrides)
    ctx = model.context(n_threads=n_threads, n_threads_batch=n_threads)
    ctx.decode(PROMPT)
    seconds = time.perf_counter() - start
    ctx.close()
    model.close()
    return seconds


def paired(a: Callable[[], float], b: Callable[[], float], n: int) -> dict[str, Any]:
    """Medians of n runs of a and b, which take turns at going first, and of a/b; without the first pair."""
    pairs = []
    for i in range(n + 1):
        if i % 2:
            second = b()
            pairs.append((a(), second))
        else:
            pairs.append((a(), b()))
    ratios = [x / y for x, y in pairs[1:]]
    quartiles = statistics.quantiles(ratios, n=4) if n > 1 else ratios * 3
    return {
        "a": statistics.median(x for x, _ in pairs[1:]),
        "b": statistics.median(y for _, y in pairs[1:]),
        "ratio": statistics.median(ratios),
        "quartiles": [quartiles[0], quartiles[2]],
        "n": n,
    }


def bytes_per_token(path: Path, spec: str = "") -> int:
    """Weights that a token reads: all of the kept ones; the embeddings count once, as the output."""
    names = {t.name for t in tensors(path)}
    gone = left_out(path, spec) if spec else []
    kept = [t for t in tensors(path) if t not in gone]
    return sum(t.size for t in kept if t.name != "token_embd.weight" or "output.weight" not in names)


def at_context(
    lib: Library, path: Path, overrides: Override, n_ctx: int, n_threads: int
) -> tuple[float, float]:
    """Return the tokens per second of a prompt, and of single tokens behind it."""
    params = {"n_ctx": n_ctx + N_GENERATE, "n_batch": 512, "flash": "on"}
    model = lib.model(path, overrides)
    ctx = model.context(**params, n_threads=n_threads, n_threads_batch=n_threads)
    tokens = np.random.default_rng(0).integers(1000, 2000, n_ctx).tolist()
    seconds = []
    for part in (
        [tokens[i : i + 512] for i in range(0, n_ctx, 512)],
        [[token] for token in range(2000, 2016)],
    ):
        start = time.perf_counter()
        for batch in part:
            ctx.decode(batch)
        seconds.append(time.perf_counter() - start)
    ctx.close()
    model.close()
    return n_ctx / seconds[0], 16 / seconds[1]


def contexts(model: Path, lengths: list[int], n: int, n_threads: int) -> list[dict[str, Any]]:
    """Return a row for each length, of the prompt and of generation: full, half of the attentions, none."""
    last = max(t.block for t in tensors(model) if t.block is not None)
    ways = {
        "full": {},
        "half": {"skip.layers": f"1-{last}+2:attn"},
        "none": {"skip.layers": f"0-{last}:attn"},
    }
    worker = Worker(builds.ours().lib)
    rows = []
    for length in lengths:
        runs = [
            {way: worker.call(at_context, model, skip, length, n_threads) for way, skip in ways.items()}
            for _ in range(n)
        ]
        for i, what in enumerate(("prompt", "generation")):
            speeds = [{way: speed[i] for way, speed in run.items()} for run in runs]
            ratios = [s["half"] / s["full"] for s in speeds]
            predicted = [1 / (1 - (1 - s["full"] / s["none"]) / 2) for s in speeds]
            rows.append(
                {
                    "name": f"{what}, {length} tokens",
                    "at_least": 0.9,
                    "share": statistics.median(1 - s["full"] / s["none"] for s in speeds),
                    "full": statistics.median(s["full"] for s in speeds),
                    "half": statistics.median(s["half"] for s in speeds),
                    "ratio": statistics.median(ratios),
                    "of_predicted": statistics.median(r / p for r, p in zip(ratios, predicted, strict=True)),
                }
            )
            print(rows[-1], file=sys.stderr)
    worker.close()
    return rows


def measure(model: Path, spec: str, n: int, n_threads: int) -> list[dict[str, Any]]:
    stock, ours = builds.stock(), builds.ours()
    has_halves = ":" in spec
    skip = {"skip.layers": spec}
    rows = []

    def row(name: str, bound: float, result: dict[str, Any], factor: float = 1.0) -> None:
        scaled = {
            **result,
            "ratio": result["ratio"] * factor,
            "quartiles": [q * factor for q in result["quartiles"]],
        }
        rows.append({"name": name, "at_least": bound, **scaled})
        print(f"{name}: {scaled['ratio']:.3f}", file=sys.stderr)

    with tempfile.TemporaryDirectory(
        dir=model.parent if os.access(model.parent, os.W_OK) else None
    ) as folder:
        pruned = Path(folder) / "pruned.gguf"
        if not has_halves:
            out = ",".join(map(str, expand(spec)))
            done = stock.run("llama-quantize", "--prune-layers", out, model, pruned, "COPY")
            if done.returncode != 0:
                raise SystemExit(f"error: llama-quantize --prune-layers failed: {done.stderr[-500:]}")
        theirs, mine = Worker(stock.lib), Worker(ours.lib)

        def speed(worker: Worker, path: Path, overrides: Override) -> Callable[[], float]:
            return lambda: worker.call(generate, path, overrides, n_threads)

        def latency(worker: Worker, path: Path, overrides: Override, cold: bool) -> Callable[[], float]:
            return lambda: worker.call(first_token, path, overrides, n_threads, cold)

        row("full", 0.98, paired(speed(mine, model, {}), speed(theirs, model, {}), n))
        ideal = bytes_per_token(model, spec) / bytes_per_token(model)
        row(
            "ideal",
            0.95 if has_halves else 0.97,
            paired(speed(mine, model, skip), speed(mine, model, {}), n),
            ideal,
        )
        if not has_halves:
            row("pruned", 0.99, paired(speed(mine, model, skip), speed(theirs, pruned, {}), n))
        for cold in (True, False) if not has_halves else ():
            result = paired(latency(theirs, pruned, {}, cold), latency(mine, model, skip, cold), n)
            row(f"first token, {'cold' if cold else 'warm'}", 1.0, result)
        theirs.close()
        mine.close()
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="GGUF (default: SmolLM2-135M)")
    parser.add_argument("--skip-layers", metavar="SPEC", help="default: the middle third")
    parser.add_argument("--contexts", type=int, nargs="+", metavar="N", help="tokens of context")
    parser.add_argument("--runs", type=int, default=15, metavar="N", help="pairs of each (default: 15)")
    parser.add_argument("--threads", type=int, default=n_processors(), metavar="N")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    model = args.model or builds.smollm2()
    n_layer = 1 + max(t.block for t in tensors(model) if t.block is not None)
    spec = args.skip_layers or f"{n_layer // 3}-{2 * n_layer // 3 - 1}"
    if args.contexts:
        rows = contexts(model, args.contexts, args.runs, args.threads)
        print(json.dumps({"model": model.name, "threads": args.threads, "rows": rows}, indent=2))
        return 0
    rows = measure(model, spec, args.runs, args.threads)
    if args.json:
        print(
            json.dumps(
                {"model": model.name, "skip_layers": spec, "threads": args.threads, "rows": rows}, indent=2
            )
        )
        return 0
    print(f"{model.name}, blocks {spec} left out, {args.threads} threads, medians of {args.runs} pairs\n")
    print(f"{'':18} {'a':>9} {'b':>9} {'ratio':>7} {'quartiles':>15} {'at least':>9}")
    for r in rows:
        low, high = r["quartiles"]
        numbers = f"{r['a']:9.3f} {r['b']:9.3f} {r['ratio']:7.3f} {low:9.3f}-{high:.3f} {r['at_least']:9.2f}"
        print(f"{r['name']:18} {numbers}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
