"""What healing brings back: ways to choose blocks and ways to fill their gaps, beside smaller quantizations.

    python benchmarks/quality.py MODEL... [-f TEXT] [--judge TEXT] [-d FOLDER] [--quant TYPE ...]

Blocks are chosen on the first --tokens of TEXT, as in choice.py, gaps are fitted on --heal-tokens from all
over it, and all is judged on another text, on own writing and on source code, Python's own. "plan --heal"
is what `llama-skip plan --heal` fits on --heal-tokens, chosen on --heal-score-tokens. A gap is filled with

    identity    nothing
    norm ratio  the mean ratio of the norms behind and before it (Prune&Comp)
    full map    unweighted least squares from stream to stream, full rank, no penalty (as ReplaceMe fits)
    scale       the least-squares factor of `llama-skip heal`, where it is better than 1 on text held out
    healed      what `llama-skip heal` finds: rank at most a quarter of the width, chosen on text held out

d is ln(perplexity / the full model's), its ratio to that of the greedy path of `llama-skip score` with the
identity; no ratio is shown where leaving blocks out lowers the perplexity. Bounds on d for the greedy path:
healed, 0.7 of the identity's on the judging text, and no more than that on the model's own writing; scale, no
more on the judging text. For "plan --heal": KL divergence at most 0.45 of the greedy identity's on the
judging text, d no more than the identity's on the others. With --speed, tokens/s of prompts are measured, to
be compared within one run on a quiet machine; KV is what a token takes, in KiB. FOLDER keeps scores, plans,
quantizations and evaluations, and what is there is not made again. The exit code is 1 where a bound is
missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import choice
import numpy as np
from llama_skip import Llama
from llama_skip._tools import tool_path
from llama_skip.bypass import bypass
from llama_skip.bypass.bypass import Bypass
from llama_skip.bypass.regression import LinearFits, Sums
from llama_skip.eval.evaluate import evaluate
from llama_skip.eval.file import EvalRow, Evaluation
from llama_skip.files.identity import block_bytes, identify
from llama_skip.heal.choose import plan_healed
from llama_skip.heal.heal import OWN_WRITING, heal_plan
from llama_skip.heal.healer import Healer
from llama_skip.heal.trials import Trial
from llama_skip.measure.candidates import text_windows
from llama_skip.measure.text import read_text
from llama_skip.model.processors import n_processors
from llama_skip.plan.choose import plan_blocks
from llama_skip.plan.file import Plan, read_plan, write_plan
from llama_skip.plan.found import Found
from llama_skip.progress import progress
from llama_skip.score.file import share_of_blocks
from llama_skip.score.score import score_model
from llama_skip.skipset import Unit, gaps, ranges_text

TEXTS = ("judging", "own writing", "source code")
MODULES = ("argparse", "ast", "dataclasses", "difflib", "inspect", "tarfile", "typing", "zipfile")  # its text
BOUNDS = {("healed", "judging"): 0.7, ("healed", "own writing"): 1.0, ("scale", "judging"): 1.0}
FILLS = ("identity", "norm ratio", "full map", "scale", "healed")
HEALING = "plan --heal"
WAYS = ("greedy", "SLEB", "one-shot", "influence", "angular", HEALING)
HEALED_KLD = 0.45  # of the greedy identity's


class FullMap:
    """Unweighted least squares of t on x over tokens, each [n_tokens, n_embd]."""

    def __init__(self, n_embd: int) -> None:
        self.xx, self.xd = np.zeros((n_embd, n_embd)), np.zeros((n_embd, n_embd))

    def add(self, x: np.ndarray, t: np.ndarray) -> None:
        self.xx += x.T @ x
        self.xd += x.T @ (t - x)

    def bypass(self, gap: range) -> Bypass:
        n_embd = len(self.xx)
        change = np.linalg.lstsq(self.xx, self.xd, rcond=None)[0]
        made = bypass.linear(gap, np.eye(n_embd), change.T, np.zeros(n_embd), None)
        exact = {name: bypass.float32_tensor(tensor.values()) for name, tensor in made.tensors.items()}
        exact["v"] = bypass.float32_tensor(change.T)
        return replace(made, tensors=exact)


class Scales(Healer):
    """Heals with a factor at most."""

    def _first(self, units: Sequence[Unit], gap: range, sums: Sums, fits: LinearFits) -> Iterator[Trial]:
        return islice(super()._first(units, gap, sums, fits), 2)


def baseline(model: Path, fill: str, blocks: list[int], args: argparse.Namespace) -> Plan:
    """Return the plan with the gaps filled in order, each fitted on what those before it leave."""
    plan = Plan(identify(model), ranges_text(blocks), found=Found(fill))
    if fill == "identity":
        return plan
    with Llama(model, n_ctx=args.ctx_size, hidden_states=True, verbose=False, **options(args)) as llm:
        n_windows = args.heal_tokens // args.ctx_size
        tokens, _ = read_text(llm, args.file, n_ctx=args.ctx_size, n_windows=n_windows, spread=True)
        windows = text_windows(llm, tokens, args.ctx_size)
        with progress(len(gaps(blocks)) * len(windows)) as bar, TemporaryDirectory() as folder:
            bar.say(f"{fill} at {ranges_text(blocks)}")
            sizes = dict(enumerate(block_bytes(model)))
            healer = Scales(llm, [windows], [(blocks, gaps(blocks))], sizes, None, Path(folder), bar)
            for gap in gaps(blocks):
                if fill == "scale":
                    plan, _ = healer.heal(plan, blocks, gap)
                    continue
                ratios, full = [], FullMap(llm.n_embd())
                for x, t in healer.streams(plan, blocks, gap):
                    if fill == "full map":
                        full.add(x.astype(np.float64), t.astype(np.float64))
                    else:
                        ratios.append(np.linalg.norm(t, axis=1) / np.linalg.norm(x, axis=1))
                if fill == "full map":
                    plan = replace(plan, bypass=[*plan.bypass, full.bypass(gap)])
                else:
                    item = f"{gap.start}:{float(np.concatenate(ratios).mean())!r}"
                    plan = replace(plan, skip_scale=f"{plan.skip_scale},{item}".lstrip(","))
    return plan


def plan_file(model: Path, fill: str, blocks: list[int], args: argparse.Namespace) -> Path:
    """Return the file of a plan, which is made if it is not there."""
    path = args.folder / f"{model.stem}.{ranges_text(blocks)}.{fill.replace(' ', '-')}.plan"
    if path.exists():
        return Path(path)
    if fill == "healed":
        heal_plan(
            model,
            skip_layers=blocks,
            text=args.file,
            output=path,
            n_tokens=args.heal_tokens,
            own_writing=args.own_writing,
            n_ctx=args.ctx_size,
            show_progress=True,
            log=lambda line: print(line, file=sys.stderr),
            **options(args),
        )
    else:
        write_plan(path, baseline(model, fill, blocks, args))
    return Path(path)


def healing_plan(model: Path, share: float, args: argparse.Namespace) -> Path:
    """Return the file of what `llama-skip plan --heal` makes, which is made if it is not there."""
    path = args.folder / f"{model.stem}.{share:g}.plan-heal.plan"
    if path.exists():
        return Path(path)
    healing = {"text": args.file, "show_progress": True, **options(args)}
    score = score_model(
        model,
        output=args.folder / f"{model.stem}.heal.score.json",
        n_tokens=args.heal_score_tokens,
        n_ctx=args.ctx_size,
        n_path=share_of_blocks(choice.SHARES[-1], identify(model).n_layer),
        heal=True,
        **healing,
    )
    plan_healed(
        model,
        score,
        plan_blocks(score, fraction=share),
        output=path,
        n_tokens=args.heal_tokens,
        own_writing=args.own_writing,
        log=lambda line: print(line, file=sys.stderr),
        **healing,
    )
    return Path(path)


def quantized(model: Path, kind: str, args: argparse.Namespace) -> Path:
    """Return the model in another quantization, which is made if it is not there."""
    path = Path(args.folder) / f"{model.stem}.{kind}.gguf"
    if not path.exists():
        command = [tool_path("llama-quantize"), "--allow-requantize", model, path, kind]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return path


def options(args: argparse.Namespace) -> dict[str, int]:
    given = {"n_threads": args.threads, "n_threads_batch": args.threads}
    return given if args.gpu_layers is None else {**given, "n_gpu_layers": args.gpu_layers}


def texts(model: Path, args: argparse.Namespace) -> dict[str, Path]:
    """Return the files to judge on, which are made if they are not there."""
    found = {
        "judging": args.judge,
        "own writing": args.folder / f"{model.stem}.own-writing.txt",
        "source code": args.folder / "source-code.txt",
    }
    if not found["source code"].exists():
        files = (Path(str(import_module(name).__file__)) for name in MODULES)
        found["source code"].write_bytes(b"\n".join(file.read_bytes() for file in files))
    if not found["own writing"].exists():
        n_windows = args.judge_tokens // args.ctx_size + 1  # cut anew, text can be a few tokens shorter
        with Llama(model, n_ctx=args.ctx_size, verbose=False, **options(args)) as llm:
            tokens, _ = read_text(
                llm, None, n_ctx=args.ctx_size, n_windows=n_windows, n_written=n_windows, show_progress=True
            )
            found["own writing"].write_bytes(llm.detokenize(tokens))
    return found


def judged(model: Path, plans: list[Path], args: argparse.Namespace) -> dict[str, Evaluation]:
    """Return what all plans and quantizations do on both texts."""
    return {
        name: evaluate(
            model,
            plans=plans,
            also=[quantized(model, kind, args) for kind in args.quant],
            text=text,
            n_ctx=args.ctx_size,
            n_windows=args.judge_tokens // args.ctx_size,
            speed=args.speed,
            output=args.folder / f"{model.stem}.{name.replace(' ', '-')}.eval.json",
            show_progress=True,
            **options(args),
        )
        for name, text in texts(model, args).items()
    }


def rows(model: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each plan and quantization of a model."""
    n_layer = identify(model).n_layer
    others = not {*WAYS[1:-1]}.isdisjoint(args.ways)
    score, found = choice.chosen(model, args) if others else (choice.scored(model, args), None)
    made: list[tuple[Path, dict[str, Any]]] = []
    for share in args.shares:
        n = share_of_blocks(share, n_layer)
        chosen = choice.choices(score, found, n) if found else {WAYS[0]: [s.block for s in score.path[:n]]}
        for way in args.ways:
            if way == HEALING:
                path = healing_plan(model, share, args)
                row = {"share": share, "way": way, "blocks": read_plan(path).skip_layers, "fill": "healed"}
                made.append((path, row))
                continue
            blocks = sorted(chosen[way])
            for fill in args.fills:
                row = {"share": share, "way": way, "blocks": ranges_text(blocks), "fill": fill}
                made.append((plan_file(model, fill, blocks, args), row))
    evaluations = judged(model, sorted({path for path, _ in made}), args)
    by_name = {  # what was asked for comes first in a file, before what older plans of that name did
        text: {name: row for row in reversed(found.rows) for name in row.name.split(" = ")}
        for text, found in evaluations.items()
    }

    def measured(name: str) -> dict[str, Any]:
        row = by_name["judging"][name]
        values: dict[str, Any] = {
            "MiB": sum(m.weights for m in row.memory.values()),
            "KV": 1024 * sum(m.kv for m in row.memory.values()) / args.ctx_size,
            "prompt": row.prompt_speed,
        }
        for text, named in by_name.items():
            values[text] = {
                "perplexity": named[name].perplexity,
                "kld": named[name].kld,
                "d": d(named[name], text),
            }
        return values

    def d(row: EvalRow, text: str) -> float:
        return math.log(row.perplexity / evaluations[text].rows[0].perplexity)

    yield {"share": 0.0, "way": "full model", "blocks": "none", "fill": "", **measured("none")}
    for kind in args.quant:
        name = quantized(model, kind, args).name
        yield {"share": 0.0, "way": kind, "blocks": "none", "fill": "", **measured(name)}
    identity = {
        row["share"]: measured(path.stem)
        for path, row in made
        if (row["way"], row["fill"]) == (WAYS[0], "identity")
    }
    for path, row in made:
        values = measured(path.stem)
        for text in TEXTS:
            least = identity[row["share"]][text]["d"]
            if least > 0:
                values[text]["ratio"] = values[text]["d"] / least
            bound = BOUNDS.get((row["fill"], text)) if row["way"] == WAYS[0] else None
            values[text]["missed"] = bound is not None and values[text]["d"] > bound * least
            if row["way"] == HEALING:
                kld = identity[row["share"]][text]["kld"]
                values[text]["kld ratio"] = values[text]["kld"] / kld
                values[text]["missed"] = (
                    values[text]["kld"] > HEALED_KLD * kld if text == TEXTS[0] else values[text]["d"] > least
                )
        yield {**row, **values}


def table(model: Path, found: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    yield f"{model.name}\n"
    has_speed = found[0]["prompt"] is not None
    head = ["share", "chosen by", "left out", "gap", "MiB", "KV", *(["prompt"] if has_speed else [])]
    head += ["perplexity", "KL", "d", "d ratio"]
    head += [cell for text in TEXTS[1:] for cell in (f"{text}: KL", "d", "d ratio")]
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in found:
        cells = [f"{row['share']:.0%}", row["way"], row["blocks"], row["fill"], f"{row['MiB']:.1f}"]
        cells += [f"{row['KV']:.1f}", *([f"{row['prompt']:.0f}"] if has_speed else [])]
        for text in TEXTS:
            values = row[text]
            ratio = f"{values['ratio']:.3f}" if "ratio" in values else ""
            cells += [f"{values['perplexity']:,.2f}"] if text == "judging" else []
            shown = [f"{values['kld']:.3f}", f"{values['d']:.3f}", ratio]
            if values.get("missed"):
                shown[0 if row["way"] == HEALING and text == TEXTS[0] else 2] += " (missed)"
            cells += shown
        yield f"| {' | '.join(cells)} |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("models", nargs="+", type=Path, metavar="MODEL", help="GGUF of llama or qwen2")
    add("-f", "--file", type=Path, default=os.environ.get("LLAMA_SKIP_TEXT"), metavar="TEXT")
    add("--judge", type=Path, metavar="TEXT", help="default: the second half of -f's file")
    add("-d", "--folder", type=Path, default=Path(), help="default: here")
    add("--quant", action="append", default=[], metavar="TYPE", help="of llama-quantize; repeat it")
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    add("--fills", nargs="+", choices=FILLS, default=list(FILLS), help="identity is always needed")
    add("--shares", nargs="+", type=float, default=list(choice.SHARES))
    add("--tokens", type=int, default=4096, metavar="N", help="to choose blocks on (default: 4096)")
    add("--heal-tokens", type=int, default=32768, metavar="N", help="to fit on (default: 32768)")
    add("--heal-score-tokens", type=int, default=16384, metavar="N", help="default: 16384")
    add("--own-writing", type=float, default=OWN_WRITING, metavar="SHARE", help="of the tokens healed on")
    add("--judge-tokens", type=int, default=8192, metavar="N", help="to judge on (default: 8192)")
    add("-c", "--ctx-size", type=int, default=512, metavar="N")
    add("-t", "--threads", type=int, default=n_processors(), metavar="N")
    add("-ngl", "--gpu-layers", type=int, metavar="N", help="blocks on devices, as of Llama")
    add("--speed", action="store_true", help="measure tokens/s, too")
    add("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.file is None:
        parser.error("name a text with -f, or in LLAMA_SKIP_TEXT")
    if min(args.tokens, args.heal_tokens // 2, args.judge_tokens) < args.ctx_size:
        parser.error("--tokens and --judge-tokens have to be at least a window, --heal-tokens two")
    args.file = Path(args.file)
    halves = {"choosing": choice.choosing_text(args), "judging": choice.judging_text(args)}
    made = {args.folder / f"{name}.txt": content for name, content in halves.items()}
    if {path.resolve() for path in (args.file, args.judge) if path} & {path.resolve() for path in made}:
        parser.error(f"{' and '.join(map(str, made))} are written: name another text or folder")
    for path, content in made.items():
        path.write_bytes(content)
    args.file, args.judge = made
    found = {model.name: list(rows(model, args)) for model in args.models}
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        print("\n\n".join("\n".join(table(Path(name), of_model)) for name, of_model in found.items()))
    missed = (row[text].get("missed") for of_model in found.values() for row in of_model for text in TEXTS)
    return int(any(missed))


if __name__ == "__main__":
    sys.exit(main())
