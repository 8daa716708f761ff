"""`llama-skip demo`: what leaving blocks out of a model costs and saves, measured on this machine."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from statistics import median

from llama_skip import _core
from llama_skip.cli import doctor
from llama_skip.cli.command import Parser, UsageError, run
from llama_skip.files.identity import identify
from llama_skip.files.smollm2 import HEALED_PLAN, smollm2
from llama_skip.files.table import aligned
from llama_skip.llama.llama import Llama
from llama_skip.measure import speed as measure
from llama_skip.measure.own_writing import N_WINDOWS, Text, from_file, own_writing, own_writing_steps
from llama_skip.model.processors import n_processors
from llama_skip.plan.file import read_plan
from llama_skip.progress import progress

SMOLLM2_SETS = ["17", "16-17", "16-18"]
N_WORDS = 12
LEAST_ROUNDS, MOST_ROUNDS = 3, 7  # of speeds, as many as these seconds allow
SECONDS = 25.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the unpruned model and each set, and print a table, or JSON."""
    args = _parser().parse_args(argv)
    return run(lambda: demo(args))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="llama-skip demo", description=__doc__)
    add = parser.add_argument
    add("--model", metavar="FILE", help="a GGUF file (default: SmolLM2-135M, fetched once)")
    add("--skip-layers", metavar="SPEC", action="append", help="blocks to leave out; repeat it to compare")
    add("--skip-scale", metavar="SPEC", default="", help="what the gaps of each set are scaled by")
    add(
        "-f",
        "--file",
        metavar="TEXT",
        help="text to measure perplexity on (default: the model's own writing)",
    )
    add(
        "-c",
        "--ctx-size",
        metavar="N",
        type=int,
        default=512,
        help="tokens in a window of TEXT (default: 512)",
    )
    add("--windows", metavar="N", type=int, default=8, help="windows of TEXT to use at most (default: 8)")
    add("-t", "--threads", metavar="N", type=int, help="threads (default: one a processor)")
    add(
        "-ngl", "--n-gpu-layers", metavar="N", type=int, default=-1, help="kept blocks on GPUs (default: all)"
    )
    add("--json", action="store_true", help="print JSON")
    return parser


def demo(args: argparse.Namespace) -> int:
    """Run the demo with parsed arguments.

    Raises:
        UsageError: arguments that this model does not allow.
        FileNotFoundError: no such model or text.
    """
    if args.ctx_size < 128 or args.windows < 1:
        raise UsageError("--ctx-size has to be at least 128, and --windows at least 1")
    model = args.model or str(smollm2())
    report = doctor.examine()
    print(doctor.summary(report), file=sys.stderr if args.json else sys.stdout, flush=True)
    for warning in report["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)

    sets, why = choose_sets(args, model)
    text, rows, n_rounds = _measure_all(args, model, sets)
    if args.json:
        about = {"source": text.source, "n_ctx": text.n_ctx, "n_tokens": len(text.tokens)}
        result = {"doctor": report, "model": model, "text": about, "rows": [asdict(row) for row in rows]}
        print(json.dumps(result, indent=2))
    else:
        print(f"model: {Path(model).name}; {why}\n")
        print("\n".join(table(rows, text, n_rounds)))
        print()
        print("\n".join(next_steps(model, sets[0] if sets else "none")))
    return 0


def choose_sets(args: argparse.Namespace, model: str) -> tuple[list[str], str]:
    """Return the sets to compare with the unpruned model, checked, and a sentence on where they are from."""
    sets, why = args.skip_layers, "sets as given"
    if not sets and not args.model:
        sets = [*SMOLLM2_SETS, *healed_plan(model)]
        why = "the sets of one, two and three blocks that `llama-skip score` chooses for it"
    elif not sets:
        sets = middle_sets(identify(model).n_layer)
        why = "sets from the middle, a sixteenth and an eighth of the blocks, not chosen by measurement"
    for layers in sets:
        try:
            _core.check_skip(os.fsencode(model), layers, args.skip_scale, "--skip-layers", "--skip-scale")
        except ValueError as err:
            raise UsageError(err) from None
    return [layers for layers in sets if layers != "none"], why


def middle_sets(n_layer: int) -> list[str]:
    """Return a sixteenth and an eighth of the blocks, at least one and two, around the middle of the model.

    Raises:
        UsageError: a model of fewer than four blocks.
    """
    if n_layer < 4:
        raise UsageError(f"this model has {n_layer} blocks, name those to leave out with --skip-layers")
    sets = []
    for n_out in (max(1, n_layer // 16), max(2, n_layer // 8)):
        first = (n_layer - n_out) // 2
        sets.append(str(first) if n_out == 1 else f"{first}-{first + n_out - 1}")
    return sets


def healed_plan(model: str) -> list[str]:
    """Return the set of the plan that this package brings, where it is for this file."""
    return [f"@{HEALED_PLAN}"] if read_plan(HEALED_PLAN).model.file_id == identify(model).file_id else []


def _measure_all(
    args: argparse.Namespace, model: str, sets: Sequence[str]
) -> tuple[Text, list[measure.Row], int]:
    """Return the text, a row for each set, and the rounds of speeds; one model is held at a time."""

    def load(layers: str) -> Llama:
        return Llama(
            model,
            skip_layers=layers,
            skip_scale=args.skip_scale if layers != "none" and args.skip_scale else None,
            n_gpu_layers=args.n_gpu_layers,
            n_ctx=args.ctx_size,
            n_batch=args.ctx_size,
            n_threads=args.threads or n_processors(),
            n_threads_batch=args.threads,
            flash_attn=None,
            verbose=False,
        )

    sets = ["none", *sets]
    n_windows, n_before = (
        (args.windows, 0) if args.file else (N_WINDOWS, own_writing_steps(args.ctx_size // 2))
    )
    with progress(n_before + len(sets) * (n_windows + 2 * MOST_ROUNDS)) as bar:
        bar.say("writing the text")
        with load("none") as llm:
            if args.file:
                text = from_file(llm, args.file, args.ctx_size, args.windows)
            else:
                text = own_writing(llm, args.ctx_size // 2, bar)
        rows: list[measure.Row] = []
        for layers in sets:
            bar.say(f"perplexity, {len(rows) + 1} of {len(sets)}")
            with load(layers) as llm:
                rows.append(measure.measure(llm, _name(layers), text, bar))
        found: list[list[tuple[float, float]]] = [[] for _ in sets]
        start = time.perf_counter()
        for i in range(MOST_ROUNDS):
            if i >= LEAST_ROUNDS and time.perf_counter() - start > SECONDS:
                break
            bar.say(f"speed, round {i + 1}")
            for layers, timings in zip(sets, found, strict=True):
                with load(layers) as llm:
                    llm.logits(text.tokens[:8])  # not counted: graphs are built, pages brought in
                    timings.append(measure.speed(llm, text.tokens, bar, n_runs=1)[:2])
    medians = [map(median, zip(*timings, strict=True)) for timings in found]
    pairs = zip(rows, medians, strict=True)
    rows = [replace(row, prompt_speed=p, generation_speed=g) for row, (p, g) in pairs]
    return text, rows, len(found[0])


def _name(layers: str) -> str:
    return f"{read_plan(HEALED_PLAN).skip_layers}, healed" if layers == f"@{HEALED_PLAN}" else layers


def table(rows: Sequence[measure.Row], text: Text, n_rounds: int) -> Iterator[str]:
    """Yield the lines of the table; the first row is the unpruned model."""
    head = ["left out", "kept", "weights MiB", "KV MiB", "prompt t/s", "generation t/s", "perplexity", ""]
    cells = [
        [
            row.skip_layers,
            f"{row.n_kept} of {row.n_layer}",
            f"{row.weights:.1f}",
            f"{row.kv:.2f}",
            f"{row.prompt_speed:.0f}",
            f"{row.generation_speed:.1f}",
            f"{row.perplexity:.2f}",
            f"{row.perplexity / rows[0].perplexity - 1:+.0%}" if row is not rows[0] else "",
        ]
        for row in rows
    ]
    yield from aligned([head, *cells])
    yield ""
    yield f"tokens/s: the median of {n_rounds} rounds, in each of which every row is timed in turn"
    yield f"perplexity: lower is better; on {text.source} ({rows[0].n_scored} tokens scored)"
    yield ""
    yield f'after "{measure.PROMPT}" each goes on, always with the likeliest token:'
    width = max(len(row.skip_layers) for row in rows)
    for row in rows:
        words = " ".join(row.writes.split()[:N_WORDS])
        yield f"  {row.skip_layers.rjust(width)}: {words} ..."


def next_steps(model: str, layers: str) -> Iterator[str]:
    """Yield the two commands to type next."""
    yield "next: what each block of a model costs (minutes), and the model without some"
    yield f"  llama-skip score {quote(model)}"
    yield f"  llama-cli -m {quote(model)} --skip-layers {quote(layers)}"
