"""`llama-skip plan`: the blocks to leave out for a target, as arguments of llama.cpp's tools."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llama_skip.cli.command import Parser, UsageError, run
from llama_skip.cli.options import add_halves, add_model_options, model_options, score_name
from llama_skip.errors import message
from llama_skip.files.identity import check_same, identify
from llama_skip.files.store import check_writable
from llama_skip.heal.choose import plan_healed
from llama_skip.llama.llama import Llama
from llama_skip.measure import speed as measure
from llama_skip.measure.text import read_text
from llama_skip.plan import alternatives
from llama_skip.plan import disk as diskplan
from llama_skip.plan.choose import (
    check_target,
    plan_blocks,
    plan_kv,
    plan_memory,
    plan_speed,
    with_speedup,
)
from llama_skip.plan.describe import arguments, path_end, talk
from llama_skip.plan.file import Plan, write_plan
from llama_skip.progress import progress
from llama_skip.score import score as scoring
from llama_skip.score.file import Score, read_score, share_of_blocks
from llama_skip.score.score import N_HEALED, N_TOKENS

FROM_SCORE = ("blocks", "fraction", "max_kld", "max_ppl_ratio")
N_CTX = 512  # tokens in a window of a text
N_WINDOWS = 4  # on which the alternatives are measured

EPILOG = """stdout carries only arguments: llama-server -m MODEL $(llama-skip plan MODEL ...). With --vram,
stderr ends with what else fits into the same memory, measured: recommended (*) is what diverges least of all
that holds the context and writes at least 90 % as fast as the fastest."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the arguments of a plan on stdout, and all else on stderr."""
    args = _parser().parse_args(argv)
    return run(lambda: _plan(args))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="llama-skip plan", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("source", metavar="MODEL|SCORE", help="a GGUF file, or for the first four targets a score alone")
    targets = parser.add_argument_group("target, one of")
    target = targets.add_mutually_exclusive_group(required=True).add_argument
    target(
        "--blocks",
        metavar="K",
        type=int,
        help="leave K blocks out; of a score with --halves, at most what K blocks take on average",
    )
    target(
        "--fraction",
        metavar="F",
        type=float,
        help="a share of the blocks, 0 to 1, rounded down; of a score with --halves, to its steps",
    )
    target("--max-kld", metavar="X", type=float, help="KL divergence of at most X nats per token")
    target("--max-ppl-ratio", metavar="R", type=float, help="perplexity at most R times the full model's")
    target("--vram", metavar="MIB", type=float, help="weights, KV cache and compute buffers within MIB")
    target("--kv", metavar="MIB", type=float, help="a KV cache for -c tokens of at most MIB, on all devices")
    target("--speedup", metavar="S", type=float, help="single tokens S times as fast")
    add(
        "-np",
        "--parallel",
        metavar="N",
        type=int,
        help="with --vram: slots of llama-server, which takes less memory than others (default: any tool)",
    )
    add(
        "--disk",
        metavar="R",
        type=float,
        nargs="?",
        const=diskplan.SHARE,
        help="with --vram: blocks on disk instead of left out, where that is at least R times as fast "
        f"(default of R: {diskplan.SHARE})",
    )
    add("--score", metavar="FILE", help="score of MODEL (default: it is scored first)")
    add(
        "--heal",
        action="store_true",
        help="leave out the blocks that heal best, and heal them: the plan is a GGUF file, OUTPUT",
    )
    add(
        "--tokens",
        metavar="N",
        type=int,
        help="tokens of TEXT to score on where there is no score, and with --heal to fit on (default: "
        f"{N_TOKENS}, {N_HEALED} with --heal)",
    )
    add_halves(parser)
    add("--also", metavar="FILE", action="append", default=[], help="with --vram: another quantization")
    add("--no-alternatives", action="store_true", help="with --vram: do not measure what else fits")
    add("-f", "--file", metavar="TEXT", help="text to measure on (default: the model's own writing)")
    add("-o", "--output", metavar="FILE", help="write the plan (default with --heal: MODEL.heal.gguf here)")
    add_model_options(parser, ctx_size=4096)
    return parser


def _check_bounds(args: argparse.Namespace) -> None:
    targets = {name: getattr(args, name) for name in (*FROM_SCORE, "kv", "speedup")}
    check_target(**targets, mib=args.vram, share=args.disk, n_parallel=args.parallel)
    if args.vram is None and (args.also or args.parallel or args.disk):
        raise UsageError("--also, --parallel and --disk are for --vram")
    if args.per and not args.halves:
        raise UsageError("--per is for --halves")
    if args.heal and args.disk is not None:
        raise UsageError("--disk is for plans without --heal")


def _plan(args: argparse.Namespace) -> int:
    _check_bounds(args)
    output = args.output or (f"{Path(args.source).stem}.heal.gguf" if args.heal else None)
    if args.heal and output and output.split() != [output]:
        raise UsageError(f"-o {output!r}: a blank in it cannot be an argument of $(llama-skip plan ...)")
    if output:
        check_writable(output)
    options = model_options(args)
    model, found = _score(args, options)
    if args.vram is args.kv is args.speedup is None:
        plan = plan_blocks(found, **{name: getattr(args, name) for name in FROM_SCORE})
    elif args.speedup is not None:
        plan = plan_speed(model, found, args.speedup, **options)
    elif args.kv is not None:
        plan = plan_kv(model, found, args.kv, **_given(args, options))
    else:
        plan = left_out = plan_memory(model, found, args.vram, **_given(args, options))
        if args.disk is not None:
            plan = diskplan.plan_disk(model, found, left_out, share=args.disk, **_given(args, options))
    ends = path_end(plan, found)
    if args.heal and plan.skip_layers:
        args.output = output
        plan = left_out = _healed(plan, model, found, args, options)
    for line in [*talk(plan), *diskplan.talk(plan), *ends]:
        _say(line)
    if args.vram is not None and args.parallel is None:
        _say("this is for any tool; llama-server takes less: -np N plans for N slots of it")
    words = arguments(plan, args.output)
    if args.output:
        write_plan(args.output, plan)
    if args.vram is not None and (plan.skip_layers or plan.disk_layers) and not args.no_alternatives:
        _compare(plan, left_out, args, options)
    print(" ".join(words))
    return 0


def _score(args: argparse.Namespace, options: dict[str, Any]) -> tuple[str, Score]:
    """Return the model, "" where there is only a score, and its score."""
    with Path(args.source).open("rb") as file:
        is_model = file.read(4) == b"GGUF"
    if not is_model:
        if args.score:
            raise UsageError(f"{args.source} is not a GGUF file, and --score needs one")
        if not args.vram is args.kv is args.speedup is None:
            raise UsageError("--vram, --kv and --speedup need MODEL, with --score FILE")
        if args.heal:
            raise UsageError("--heal needs MODEL, with --score FILE")
        return "", _made_so(read_score(args.source), args)
    alternatives.check_files(args.source, args.also)
    if args.score:
        found = _made_so(read_score(args.score), args)
        if line := check_same(found.model, identify(args.source), args.score):
            _say(line)
        return args.source, found
    return args.source, _fresh_score(args, options)


def _made_so(found: Score, args: argparse.Namespace) -> Score:
    if args.heal != found.heals or (not args.heal and "heal" in found.settings):
        kinds = ("--heal needs", "with --heal") if args.heal else ("without --heal it needs", "without it")
        raise UsageError(f"{kinds[0]} a score that was made {kinds[1]} too")
    if args.heal:
        scoring.check_text(found, args.file)
    if args.halves and not found.halves:
        raise UsageError("--halves needs a score that was made with --halves too")
    if args.per and args.per != (per := found.settings["per"]):
        raise UsageError(f"--per {args.per}: the score was made with --per {per}")
    return found


def _fresh_score(args: argparse.Namespace, options: dict[str, Any]) -> Score:
    """Score the model, at least as far as the target needs."""
    output = score_name(args.source, heal=args.heal, halves=args.halves, per=args.per)
    n_layer = identify(args.source).n_layer
    n_path = share_of_blocks(scoring.FRACTION, n_layer)
    if args.fraction is not None:
        n_path = max(n_path, share_of_blocks(args.fraction, n_layer))
    n_path = max(n_path, args.blocks or 0)
    options = {key: value for key, value in options.items() if key != "n_ctx"}
    if args.vram is not None:
        options["n_gpu_layers"] = 0  # the full model may not fit on the device
    _say(f"no --score: scoring {args.source} first, into {output}")
    try:
        return scoring.score_model(
            args.source,
            text=args.file,
            output=output,
            n_tokens=args.tokens,
            n_ctx=N_CTX,
            n_path=n_path,
            heal=args.heal,
            halves=args.halves,
            per=args.per,
            show_progress=True,
            **options,
        )
    except scoring.OtherSettingsError as err:
        raise ValueError(f"{err.reason}; remove it, or plan with it as it is: --score {output}") from None


def _healed(plan: Plan, model: str, score: Score, args: argparse.Namespace, options: dict[str, Any]) -> Plan:
    """Return the plan with the blocks that heal best, as many as it leaves out, and healed."""
    loading = {key: value for key, value in options.items() if key != "n_ctx"}
    if args.vram is not None:
        loading["n_gpu_layers"] = 0  # the full model may not fit on the device
    plan = plan_healed(
        model,
        score,
        plan,
        text=args.file,
        output=args.output,
        n_tokens=args.tokens or 0,
        memory=_given(args, options),
        show_progress=True,
        log=_say,
        **loading,
    )
    if args.speedup is not None:
        plan = with_speedup(plan, model, args.output, **options)
    found = plan.found
    if args.speedup is not None and found.speedup is not None and found.speedup < args.speedup:
        _say(f"warning: {args.speedup:g} was asked for; the maps take some of it: ask for a little more")
    if args.max_kld is not None and found.kld is not None and found.kld > args.max_kld:
        _say(f"warning: {args.max_kld:g} was asked for; on the windows that chose, the path stays within")
    return plan


def _given(args: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options for a memory plan, without batch sizes that the tools have too."""
    left = {"n_batch": args.batch_size, "n_ubatch": args.ubatch_size}
    given = {key: value for key, value in options.items() if left.get(key, True) is not None}
    return given | ({} if args.parallel is None else {"n_parallel": args.parallel})


def _compare(plan: Plan, left_out: Plan, args: argparse.Namespace, options: dict[str, Any]) -> None:
    """Show what else fits, and write it with the plan, which is as good without it."""
    try:
        plan = _with_alternatives(plan, left_out, args, options)
    except (OSError, MemoryError, RuntimeError, ValueError) as err:
        _say(f"warning: what else fits could not be measured: {message(err)}")
        return
    if args.output:
        write_plan(args.output, plan)


def _with_alternatives(plan: Plan, left_out: Plan, args: argparse.Namespace, options: dict[str, Any]) -> Plan:
    given = _given(args, options)
    found = list(alternatives.ways(left_out, args.source, args.vram, args.also, file=args.output, **given))
    if plan.disk_layers:
        found.insert(1, alternatives.on_disk(plan, args.source, **given))
    names = {candidate.name for candidate in found}
    for file in args.also:
        if Path(file).name not in names:
            _say(f"{file}: nothing of it fits")
    n_ctx = min(N_CTX, args.ctx_size)
    text_options = {"n_ctx": n_ctx, "n_gpu_layers": 0, "verbose": False, "n_threads": args.threads}
    with Llama(args.source, **text_options) as llm:
        tokens, info = read_text(llm, args.file, n_ctx=n_ctx, n_windows=N_WINDOWS, show_progress=True)
    n_steps = len(found) * (info.n_windows + measure.N_STEPS)
    with progress(n_steps) as bar:
        compared = alternatives.compare(found, tokens, n_ctx=n_ctx, bar=bar, threads=args.threads)
    for line in alternatives.table(compared):
        _say(line)
    _say(f"on {info.name}, {info.n_windows} windows of {info.n_ctx} tokens")
    recommended = next(a.name for a in compared if a.recommended)
    found_by = replace(plan.found, recommended=recommended)
    return replace(plan, found=found_by, alternatives=[asdict(a) for a in compared])


def _say(line: str) -> None:
    print(line, file=sys.stderr)
