"""What each block of a model costs, and the order in which blocks go."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llama_skip.errors import ArgumentError, at_least
from llama_skip.files.identity import TextInfo, block_bytes, identify
from llama_skip.files.store import StrPath, check_writable
from llama_skip.llama.llama import Llama
from llama_skip.measure import splits
from llama_skip.measure.candidates import text_windows
from llama_skip.measure.divergence import Scored
from llama_skip.measure.own_writing import SEED
from llama_skip.measure.text import read_text
from llama_skip.model.options import DEFAULTS, NO_RESULT
from llama_skip.progress import Progress, progress
from llama_skip.score import search, steps
from llama_skip.score.checkpoint import Checkpoint
from llama_skip.score.file import Score, read_score, share_of_blocks, write_score
from llama_skip.score.healing_runner import N_FITTED, RIDGE, HealingRunner
from llama_skip.score.runner import Runner
from llama_skip.score.sizes import PER, Sizes, chosen_by, ms_per_mib, weights
from llama_skip.skipset import Unit

N_TOKENS = 4096
N_HEALED = 32768  # tokens of which an eighth chooses
LEAST_CTX = 32
FRACTION = 0.3
OF_BLOCKS, LEAST = 4, 8  # with halves, a step measures one candidate for so many blocks, at least so many
# what a score may differ in and still be gone on with
FREE_SETTINGS = ("n_gpu_layers", "devices", "rpc_servers", "n_path", "ms_per_mib")


class OtherSettingsError(ValueError):
    """The output holds a score of another text, file or settings.

    Attributes:
        reason: which, without what to do.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; remove it or name another file")
        self.reason = reason


def score_model(
    model_path: StrPath,
    *,
    text: StrPath | None = None,
    output: StrPath | None = None,
    n_tokens: int | None = None,
    n_ctx: int = 512,
    n_path: int | None = None,
    shortcuts: bool = True,
    heal: bool = False,
    halves: bool = False,
    per: str | None = None,
    show_progress: bool = False,
    on_window: Callable[[], object] = lambda: None,
    **options: Any,
) -> Score:
    """Measure what each block costs, and the greedy order in which blocks go.

    At each step of the greedy path the block goes without which KL divergence from the full model plus
    surprisal of the text is smallest; of blocks that this cannot tell apart on so many tokens, the one
    without which perplexity is lowest. Each block alone is measured on an eighth of the text, on less if it
    is far dearer than what will go, and on more if it may go first.
    With `halves` attention or feed-forward of a block can go alone, and that goes which costs least for what
    it saves: growth per byte, KV byte or millisecond. Where that cannot be told, a whole block goes before
    halves, since neighbouring blocks cost less together (by KV bytes an attention is as good). The rest of
    such a block goes as the block.
    Perplexity and divergence count the second half of each window, as llama-perplexity does. A path that is
    made longer later is measured anew from there, with less known about what blocks cost.

    Args:
        model_path: the GGUF file.
        text: a text to calibrate on; None: what the model itself writes after mixed prompts, fixed seed.
        output: the score file, written after each step; one that was begun with the same model, text and
            settings is gone on with, also towards a longer path.
        n_tokens: tokens of the text to use at most, whole windows of n_ctx; None: 4096, with `heal` 32768.
        n_ctx: tokens in a window.
        n_path: blocks on the greedy path; None: 30 % of all. With `halves` it ends where as much is saved as
            by so many blocks on average.
        shortcuts: False: measure each candidate of each step on all tokens and from the first block on.
        heal: put into each gap the linear map from the full model's stream before it to that behind it, so
            that the blocks go that heal well, as `llama_skip.heal_plan` then does. One window of eight
            chooses, the maps are fitted on others; one of eight is left for `heal_plan` to judge by.
        halves: let halves of blocks go, too.
        per: what halves and blocks save, "weights" (default), "kv" or "time": bytes of weights, of the KV
            cache, or the time of a single token, measured at the end of a window.
        show_progress: show a bar on stderr.
        on_window: called after each window of each step.
        options: further arguments of `Llama`.

    Raises:
        ValueError: a text or path too short or long, NaN in the logits, an output that holds something else,
            or nothing is saved of what the path shall go by.
        OSError, llama_skip.ModelLoadError: a file cannot be read or written, or is no model.
    """
    if n_tokens is None:
        n_tokens = N_HEALED if heal else N_TOKENS
    at_least(LEAST_CTX, n_ctx=n_ctx)
    at_least(splits.LEAST * n_ctx if heal else n_ctx, n_tokens=n_tokens)
    if per is not None and (not halves or per not in PER):
        expected = f"expected {', '.join(PER)}" if halves else "is for a path over halves"
        raise ArgumentError("per", f"{per!r} {expected}")
    if output is not None:
        check_writable(output)
    model = identify(model_path)
    n_path = share_of_blocks(FRACTION, model.n_layer) if n_path is None else n_path
    if not 0 < n_path < model.n_layer:
        raise ArgumentError("n_path", f"{n_path} of {model.n_layer}; at least one has to go, and one to stay")
    options = {**DEFAULTS, **options}
    with Llama(model_path, n_ctx=n_ctx, hidden_states=True, **options) as llm:
        tokens, info = _text(llm, text, n_ctx, n_tokens // n_ctx, heal, show_progress)
        if heal and info.n_windows < splits.LEAST:
            raise ValueError(
                f"{info.name}: {info.n_windows} windows of {n_ctx} tokens; fit, choose and judge on three"
            )
        settings = {
            **{name: value for name, value in options.items() if name not in NO_RESULT},
            "n_tokens": n_tokens,
            "n_ctx": n_ctx,
            "n_path": n_path,
            "shortcuts": shortcuts,
            **({"heal": {"fit": "linear", "ridge": RIDGE, "n_fitted": N_FITTED}} if heal else {}),
            **({"halves": True, "per": per or PER[0]} if halves else {}),
            "rules": {
                "loss": search.LOSS,
                "z": search.Z,
                "slack": search.SLACK,
                "apart": search.APART,
                "far": search.FAR,
                "ties": "blocks, perplexity" if halves and per != "kv" else "perplexity",
            },
        }
        fresh = Score(model, info, json.loads(json.dumps(settings)), False, 0.0, 0.0)
        score = _begun(fresh, output) if output is not None else fresh
        windows = text_windows(llm, tokens, n_ctx)
        judged = [windows[i] for i in splits.chosen_on(windows)] if heal else windows
        n_steps = _n_steps(len(judged), n_path, model.n_layer, halves)
        with progress(n_steps, shown=show_progress) as bar, TemporaryDirectory() as folder:

            def runner(units: Sequence[Unit]) -> Runner:
                if not heal:
                    return Runner(llm, windows[0], shortcuts=shortcuts, halves=units)
                bar.say("streams of the full model")
                return HealingRunner(
                    llm,
                    windows,
                    shortcuts=shortcuts,
                    halves=units,
                    about=model,
                    sizes=block_bytes(model_path),
                    folder=Path(folder),
                )

            return _measure(llm, model_path, judged, score, runner, output, bar, on_window)


def _text(
    llm: Llama, text: StrPath | None, n_ctx: int, n_windows: int, spread: bool, show_progress: bool
) -> tuple[list[int], TextInfo]:
    return read_text(
        llm,
        text,
        n_ctx=n_ctx,
        n_windows=n_windows,
        n_written=n_windows,
        spread=spread,
        seed=SEED,
        show_progress=show_progress,
    )


def check_text(score: Score, text: StrPath | None) -> None:
    """Raise ValueError where a score was made on a file's text and `text` is none, or the other way round."""
    if text is None and score.text.source == "file":
        raise ValueError(f"the score was made on a text, {score.text.name}: name it with -f")
    if text is not None and score.text.source != "file":
        raise ValueError("the score was made on the model's own writing, not on a text")


def score_tokens(llm: Llama, score: Score, text: StrPath | None, *, show_progress: bool = False) -> list[int]:
    """Return the tokens that a score was made on.

    Args:
        llm: the full model, with a context of as many tokens as a window has.
        score: which one.
        text: its text; None: the model's own writing.
        show_progress: show a bar while the model writes.

    Raises:
        ValueError: another text. What a model writes can differ from device to device, and is taken as it is.
        OSError: a file that cannot be read.
    """
    check_text(score, text)
    tokens, info = _text(llm, text, score.text.n_ctx, score.text.n_windows, score.heals, show_progress)
    if text is not None and info.sha256 != score.text.sha256:
        raise ValueError(f"the score was made on another text, {score.text.name}: name it with -f")
    return tokens


def _key(score: Score) -> dict[str, Any]:
    """Return what has to be the same for a score to be gone on with."""
    settings = {name: value for name, value in score.settings.items() if name not in FREE_SETTINGS}
    return {"file_id": score.model.file_id, **settings, "text": score.text.sha256}


def _begun(fresh: Score, output: StrPath) -> Score:
    """Return the score in `output` with the settings of `fresh`, or `fresh` where there is none."""
    if not Path(output).exists():
        return fresh
    found = read_score(output)
    old, new = _key(found), _key(fresh)
    different = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    if different:
        raise OtherSettingsError(
            f"{output}: holds a score with another {different[0]} ({old.get(different[0])}, not "
            f"{new.get(different[0])})"
        )
    n_path = fresh.settings["n_path"]
    found = replace(found, settings={**found.settings, "n_path": n_path})
    return replace(found, complete=found.complete and _is_long(found, chosen_by(found), _out(found)))


def _out(score: Score) -> list[Unit]:
    return [step.unit for step in score.path]


def _is_long(score: Score, sizes: Sizes, out: Sequence[Unit]) -> bool:
    """Return whether as much is out as was asked for."""
    return sizes.of(out) >= int(score.settings["n_path"]) - 1e-9


def _measure(
    llm: Llama,
    model_path: StrPath,
    windows: Sequence[Sequence[int]],
    score: Score,
    make_runner: Callable[[Sequence[Unit]], Runner],
    output: StrPath | None,
    bar: Progress,
    on_window: Callable[[], object],
) -> Score:
    """Go on with a score until its path is complete."""
    if score.complete:
        return score
    checkpoint = Checkpoint(output, _key(score))
    race, n_path = score.settings["shortcuts"], score.settings["n_path"]
    is_new = not score.blocks
    if is_new:
        score = steps.with_sizes(score, model_path)
    halves = [half.unit for half in score.halves]
    runner = make_runner(halves)
    if is_new:
        score = steps.with_stream(score, runner, windows, bar)
    if score.settings.get("per") == "time" and "ms_per_mib" not in score.settings:
        bar.say("time of a token")
        allowed = {unit: weights(score).halves[unit] for unit in runner.halves}
        times = ms_per_mib(llm, windows[0], allowed)
        score = replace(score, settings={**score.settings, "ms_per_mib": times})
    sizes = chosen_by(score)
    out, prior, known = _out(score), _prior(score), list[Scored]()
    begun = checkpoint.load(out, after=any(block.n_scored for block in score.blocks))
    if begun and not begun.alive and not _is_long(score, sizes, begun.out):  # the end of a shorter path
        alive = _candidates(score, sizes, begun.out)
        begun = search.Sweep(begun.out, alive, prior=begun.prior)
    while True:
        out = begun.out if begun else out
        is_last = _is_long(score, sizes, out)
        state = begun or search.Sweep(
            out,
            [] if is_last else _candidates(score, sizes, out),
            prior=prior if out else {},
        )
        state.saves, state.known = sizes.gains(out), known
        state.blocks_first = score.settings["rules"]["ties"].startswith("blocks")
        begun = None
        bar.say(f"{sizes.of(out):.3g} of {n_path} blocks chosen")

        weight = _weight(len(out), is_last, llm.n_layer(), bool(halves))

        def window_done(state: search.Sweep = state, weight: int = weight) -> None:
            bar.step(weight)
            checkpoint.save(state)
            on_window()

        bar.step(weight * len(state.base))
        most = max(score.model.n_layer // OF_BLOCKS, LEAST) if halves else None
        search.run(state, runner, windows, n_path=n_path, race=race, most=most, on_window=window_done)
        if not out and not state.alive:
            raise ValueError(f"no block can be left out: {next(iter(state.refused.values()))}")
        score = steps.with_step(score, state) if out else steps.with_first(score, state)
        score = replace(score, complete=is_last or not state.alive)
        if output is not None:
            write_score(output, score)
        if score.complete:
            checkpoint.remove()
            return score
        best, costs = state.best(), state.costs()
        known = state.samples[best]
        prior = {**state.prior, **costs}
        if halves:
            prior = _without_half({**_grown(state.prior, costs), **costs}, best)
        out = [*out, best]


def _candidates(score: Score, sizes: Sizes, out: Sequence[Unit]) -> list[Unit]:
    refused = {block.unit for block in score.alone if block.refused is not None}
    return [unit for unit in sizes.gains(out) if unit not in refused]


def _prior(score: Score) -> dict[Unit, float]:
    """Return what blocks and halves cost alone, as far as that is known."""
    prior: dict[Unit, float] = {block.unit: block.kld for block in score.alone if block.kld is not None}
    for unit in _out(score):
        prior = _without_half(prior, unit)
    return prior


def _grown(prior: dict[Unit, float], costs: dict[Unit, float]) -> dict[Unit, float]:
    """Return costs of before as they may be now: dearer by as much as those that were measured again are."""
    ratios = [cost / prior[unit] for unit, cost in costs.items() if prior.get(unit, 0.0) > 0]
    ratio = max(statistics.median(ratios), 1.0) if ratios else 1.0
    return {unit: ratio * cost for unit, cost in prior.items()}


def _without_half(prior: dict[Unit, float], unit: Unit) -> dict[Unit, float]:
    """Return costs after a half went: its block, as far as it is there, costs that much less."""
    if isinstance(unit, int) or unit[0] not in prior:
        return prior
    return {**prior, unit[0]: prior[unit[0]] - prior.get(unit, 0.0)}


def _weight(k: int, is_last: bool, n_layer: int, halves: bool) -> int:
    """Return about how many evaluations step k takes a window."""
    if k == 0:
        return 3 * n_layer // 2 if halves else n_layer
    return 1 if is_last else 8


def _n_steps(n_windows: int, n_path: int, n_layer: int, halves: bool) -> int:
    """Return the steps of the progress bar once the text is there; of halves about two go for a block."""
    n_steps = n_path * (2 if halves else 1)
    return n_windows * sum((1, *(_weight(k, k == n_steps, n_layer, halves) for k in range(n_steps + 1))))
