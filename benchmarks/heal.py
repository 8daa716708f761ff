"""What healing costs: the time of `llama-skip heal`, the speed and the bytes of what it makes.

    python benchmarks/heal.py MODEL --skip-layers SPEC [-f TEXT] [--tokens N] [--plan PLAN] [--json]

    time    processor time to heal a gap / to evaluate the model once on the same tokens      at most 3
    speed   tokens/s that the healed plan generates / those of the same blocks, identity      at least 0.97
    bytes   of the bypass tensors / of the blocks left out                                    at most 0.1

An evaluation is perplexity by llama-skip's own code, half of it before healing and half after. The two plans
generate in turns in one process; the ratio is the median of the pairs'. With --plan that file is measured
and nothing is healed. The exit code is 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llama_skip import Llama
from llama_skip.files.identity import block_bytes
from llama_skip.heal.heal import heal_plan
from llama_skip.measure import perplexity
from llama_skip.measure.text import read_text
from llama_skip.model.processors import n_processors
from llama_skip.plan.file import Plan, read_plan, write_plan
from llama_skip.skipset import gaps, resolve
from speed import paired

BOUNDS = {"time": 3.0, "speed": 0.97, "bytes": 0.1}
N_GENERATE = 64


def evaluated(args: argparse.Namespace, options: dict[str, Any]) -> float:
    """Return the processor time of one evaluation of half the tokens."""
    n_windows = args.tokens // args.ctx_size // 2
    with Llama(args.model, n_ctx=args.ctx_size, verbose=False, **options) as llm:
        tokens, _ = read_text(llm, args.file, n_ctx=args.ctx_size, n_windows=n_windows)
        bos = llm.token_bos() if llm.adds_bos else None
        start = time.process_time()
        perplexity.measure(llm, tokens, n_ctx=args.ctx_size, bos=bos)
        return time.process_time() - start


def healed(args: argparse.Namespace, options: dict[str, Any]) -> tuple[Plan, dict[str, float]]:
    """Return the plan, with the processor time of healing and of evaluating on the same tokens."""
    before = evaluated(args, options)
    start = time.process_time()
    plan = heal_plan(
        args.model,
        skip_layers=args.skip_layers,
        text=args.file,
        n_tokens=args.tokens,
        n_ctx=args.ctx_size,
        show_progress=True,
        **options,
    )
    seconds = time.process_time() - start
    return plan, {"heal_s": seconds, "evaluation_s": before + evaluated(args, options)}


def generation(model: Path, plan: Plan, n_pairs: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return the speed of the plan and of the same blocks without its bypass, in tokens/s, in pairs."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "healed.plan"
        write_plan(path, plan)
        both = [f"@{path}", plan.skip_layers]
        ready = [Llama(model, n_ctx=256, skip_layers=layers, verbose=False, **options) for layers in both]

        def speed(llm: Llama) -> float:
            llm.reset()
            llm.eval(llm.tokenize(b"Once upon a time there was an old man who"))
            start = time.perf_counter()
            for token in range(2000, 2000 + N_GENERATE):
                llm.eval([token])
            return N_GENERATE / (time.perf_counter() - start)

        found = paired(lambda: speed(ready[0]), lambda: speed(ready[1]), n_pairs)
        for llm in ready:
            llm.close()
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return all that is printed."""
    options: dict[str, Any] = {"n_threads": args.threads, "n_threads_batch": args.threads}
    if args.gpu_layers is not None:
        options["n_gpu_layers"] = args.gpu_layers
    found: dict[str, Any] = {"model": args.model.name}
    if args.plan:
        plan = read_plan(args.plan)
    else:
        plan, seconds = healed(args, options)
        n_gaps = len(gaps(resolve(args.model, plan.skip_layers, "")[0]))
        found["time"] = {**seconds, "ratio": seconds["heal_s"] / n_gaps / seconds["evaluation_s"]}
    blocks, _ = resolve(args.model, plan.skip_layers, "")
    sizes = block_bytes(args.model)
    left_out = sum(sizes[il] for il in blocks)
    tensors = sum(part.n_bytes for part in plan.bypass)
    found["skip_layers"] = plan.skip_layers
    found["speed"] = generation(args.model, plan, args.runs, options)
    found["bytes"] = {"tensors": tensors, "left_out": left_out, "ratio": tensors / left_out}
    found["missed"] = [
        name
        for name, bound in BOUNDS.items()
        if name in found
        and (found[name]["ratio"] < bound if name == "speed" else found[name]["ratio"] > bound)
    ]
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--skip-layers", metavar="SPEC")
    what.add_argument("--plan", type=Path, metavar="PLAN")
    add("-f", "--file", type=Path, default=os.environ.get("LLAMA_SKIP_TEXT"), metavar="TEXT")
    add("--tokens", type=int, default=32768, metavar="N", help="default: 32768")
    add("-c", "--ctx-size", type=int, default=512, metavar="N")
    add("--runs", type=int, default=15, metavar="N", help="pairs of runs (default: 15)")
    add("-t", "--threads", type=int, default=n_processors(), metavar="N")
    add("-ngl", "--gpu-layers", type=int, metavar="N", help="blocks on devices, as of Llama")
    add("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.file is None and not args.plan:
        parser.error("name a text with -f, or in LLAMA_SKIP_TEXT")
    if not args.plan and args.tokens < 2 * args.ctx_size:
        parser.error("--tokens has to be at least two windows")
    found = measure(args)
    if args.json:
        print(json.dumps(found, indent=1))
        return int(bool(found["missed"]))
    print(f"{found['model']}, blocks {found['skip_layers']} left out, {args.threads} threads\n")
    if "time" in found:
        times = found["time"]
        print(
            f"time   {times['ratio']:.2f}: {times['heal_s']:.0f} s, evaluation {times['evaluation_s']:.0f} s"
        )
    speed, size = found["speed"], found["bytes"]
    low, high = speed["quartiles"]
    rates = f"{speed['a']:.1f}, identity {speed['b']:.1f} tokens/s"
    print(f"speed  {speed['ratio']:.3f} ({low:.3f}-{high:.3f}): {rates}")
    print(f"bytes  {size['ratio']:.3f}: {size['tensors']:,} of {size['left_out']:,}")
    print("".join(f"missed: {name}\n" for name in found["missed"]), end="")
    return int(bool(found["missed"]))


if __name__ == "__main__":
    sys.exit(main())
