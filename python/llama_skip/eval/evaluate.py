"""`llama-skip eval`: what plans and other files cost on a text, and what they save."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_skip import skipset
from llama_skip.bypass import bypass
from llama_skip.errors import at_least
from llama_skip.eval.file import EvalRow, Evaluation
from llama_skip.eval.results import Results
from llama_skip.files.identity import identify
from llama_skip.files.store import StrPath, check_writable
from llama_skip.llama.llama import Llama
from llama_skip.measure import candidates as quality
from llama_skip.measure import divergence
from llama_skip.measure import speed as measure
from llama_skip.measure.candidates import Candidate
from llama_skip.measure.text import read_text
from llama_skip.model.loaded import DeviceMemory
from llama_skip.model.options import DEFAULTS, NO_RESULT
from llama_skip.plan.file import plan_argument
from llama_skip.progress import Log, Progress, progress

LEAST_CTX = 32
N_WINDOWS = 8


def evaluate(
    model_path: StrPath,
    skip_layers: Sequence[skipset.Layers] = (),
    *,
    skip_scale: skipset.Scale | None = None,
    plans: Sequence[StrPath] = (),
    also: Sequence[StrPath] = (),
    text: StrPath | None = None,
    n_ctx: int = 512,
    n_windows: int = N_WINDOWS,
    speed: bool = True,
    output: StrPath | None = None,
    show_progress: bool = False,
    log: Log = lambda line: None,
    **options: Any,
) -> Evaluation:
    """Measure perplexity, KL divergence from the full model, speed and memory of sets of blocks and of files.

    Perplexity and its error are those that llama-perplexity prints, given the same text, context (-c),
    windows (--chunks) and batch sizes; its -b has to be at most -c, as here.

    Args:
        model_path: the full model, which the first row is about.
        skip_layers: the sets, each as for `Llama`.
        skip_scale: what the gaps of each of these sets are scaled by.
        plans: plan files.
        also: other files with the same vocabulary, such as other quantizations.
        text: a text file; None: text that the full model writes itself.
        n_ctx: tokens in a window.
        n_windows: windows at most, 0 for the whole text.
        speed: measure tokens per second.
        output: a file that gets the results. One that has some already, with the same settings, is added to.
        show_progress: show a bar on stderr.
        log: called with each line that a user should see.
        options: further arguments of `Llama`, such as n_gpu_layers.

    Raises:
        ValueError: a bad set, the plan of another model, a text that is too short, NaN in the logits, or an
            output file made with other settings.
        OSError: a file that cannot be read or written.
        llama_skip.ModelLoadError: a file that cannot be loaded.
    """
    at_least(LEAST_CTX, n_ctx=n_ctx)
    at_least(0, n_windows=n_windows)
    options = {**DEFAULTS, **options, "n_ctx": n_ctx}
    if output is not None:
        check_writable(output)
    full = Candidate("none", os.fspath(model_path), identify(model_path))
    candidates = [full]
    candidates += [of_set(full, layers, skip_scale, **options) for layers in skip_layers]
    candidates += [of_plan(full, plan, log=log, **options) for plan in plans]
    candidates += [Candidate(Path(path).name, os.fspath(path), identify(path)) for path in also]
    candidates = _merged(candidates)

    # a file only has to be cut into tokens, the model's own writing has to be written
    with Llama(full.path, **options, vocab_only=text is not None) as llm:
        tokens, info = read_text(llm, text, n_ctx=n_ctx, n_windows=n_windows, show_progress=show_progress)
    settings = {key: value for key, value in options.items() if key not in NO_RESULT} | {"speed": speed}
    settings = json.loads(json.dumps(settings))  # as it will be read back
    results = Results(Evaluation(full.model, info, settings), candidates, output)
    n_steps = len(candidates) * (info.n_windows + (measure.N_STEPS if speed else 0))
    with progress(n_steps, shown=show_progress) as bar:
        try:
            _measure(results, candidates, tokens, bar, options)
        finally:
            results.write()
    return results.evaluation()


def of_set(
    full: Candidate,
    layers: skipset.Layers,
    scale: skipset.Scale | None,
    *,
    name: str | None = None,
    **options: Any,
) -> Candidate:
    """Return a set of blocks of the full model, which a dry run has checked, and named where it has a name.

    Raises:
        ValueError: a bad set, or one that the architecture does not allow.
    """
    text = skipset.layers_text(layers, "skip_layers")
    with Llama(full.path, skip_layers=text, skip_scale=scale, dry_run=True, **options) as llm:
        factors = skipset.scale_text(llm.skip_scale, "skip_scale")
        blocks = skipset.ranges_text(llm.skip_layers)
    if factors:
        text += f" x {factors}"
    return replace(full, name=name or text, skip_layers=blocks, skip_scale=factors)


def _merged(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return each model once, under all of its names; the full model keeps its own."""
    found: dict[str, Candidate] = {}
    for candidate in candidates:
        same = found.get(candidate.key)
        if same is None:
            found[candidate.key] = candidate
        elif same is not candidates[0] and candidate.name not in same.name.split(" = "):
            found[candidate.key] = replace(same, name=f"{same.name} = {candidate.name}")
    return list(found.values())


def of_plan(full: Candidate, path: StrPath, *, log: Log, **options: Any) -> Candidate:
    """Return the set of a plan file.

    Raises:
        ValueError: a plan of another model, or one that is not whole.
        OSError: the file cannot be read.
    """
    plan, argument = plan_argument(path, full.model, log)
    if plan.disk_layers:
        raise ValueError(
            f"{path} has blocks on disk ({plan.disk_layers}), which `llama-skip bench --plan` measures"
        )
    name = Path(path).stem
    if not plan.bypass:
        return of_set(full, plan.skip_layers or "none", plan.skip_scale or None, name=name, **options)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    with Llama(full.path, skip_layers=argument, dry_run=True, **options):
        pass  # raises where it cannot be used
    return replace(
        full,
        name=name,
        skip_layers=plan.skip_layers,
        skip_scale=plan.skip_scale,
        plan=argument,
        plan_hash=digest,
        bypass=bypass.described(plan.bypass),
    )


def _measure(
    results: Results,
    candidates: Sequence[Candidate],
    tokens: Sequence[int],
    bar: Progress,
    options: dict[str, Any],
) -> None:
    """Measure what `results` lacks: first all on the text, then each alone for speed and memory."""
    info, full = results.begun.text, candidates[0]
    missing = [candidate for candidate in candidates if candidate.key not in results.rows]
    bar.say("perplexity and KL divergence")
    if any(len(results.pending.get(candidate.key, ())) < info.n_windows for candidate in missing):

        def on_window() -> None:
            bar.step()
            results.write(now=False)

        quality.score_candidates(full, missing, tokens, done=results.pending, on_window=on_window, **options)
    for candidate in missing:
        bar.say(f"{candidate.name}: speed and memory")
        # a load counts a mapped file from its first to its last tensor, and what it repacks once more
        with candidate.load(**{**options, "dry_run": True}) as llm:
            memory = llm.memory()
        with candidate.load(**options) as llm:
            speeds: tuple[float | None, float | None] = (None, None)
            if results.begun.settings["speed"]:
                speeds = measure.speed(llm, tokens, bar)[:2]
            row = _row(candidate, results.pending[candidate.key], memory, speeds)
        results.add(row)
        results.write()


def _row(
    candidate: Candidate,
    pieces: Sequence[divergence.Scored],
    memory: dict[str, DeviceMemory],
    speeds: tuple[float | None, float | None],
) -> EvalRow:
    ppl, kld = divergence.summary(pieces)
    return EvalRow(
        name=candidate.name,
        file=candidate.model.name,
        file_id=candidate.model.file_id,
        file_type=candidate.model.file_type,
        n_layer=candidate.model.n_layer,
        skip_layers=candidate.skip_layers,
        skip_scale=candidate.skip_scale,
        perplexity=ppl.value,
        perplexity_error=ppl.error,
        kld=kld.mean,
        kld_error=kld.error,
        kld_median=kld.median,
        kld_99=kld.quantile_99,
        top1=kld.top1,
        n_scored=kld.n_tokens,
        prompt_speed=speeds[0],
        generation_speed=speeds[1],
        memory=memory,
        bypass=candidate.bypass,
        plan_hash=candidate.plan_hash,
    )
