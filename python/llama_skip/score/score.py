"""What each block of a model costs, and the order in which blocks go."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_skip.errors import MIB, ArgumentError, at_least
from llama_skip.files.identity import block_bytes, identify
from llama_skip.files.store import StrPath, check_writable
from llama_skip.llama.llama import Llama
from llama_skip.measure.candidates import text_windows
from llama_skip.measure.divergence import summary
from llama_skip.measure.own_writing import SEED
from llama_skip.measure.text import read_text
from llama_skip.model.options import DEFAULTS, NO_RESULT
from llama_skip.progress import Progress, progress
from llama_skip.score import search
from llama_skip.score.checkpoint import Checkpoint
from llama_skip.score.file import BlockScore, Score, Step, read_score, share_of_blocks, write_score
from llama_skip.score.influence import StreamStatistics
from llama_skip.score.runner import Runner
from llama_skip.score.scaled_runner import ScalingRunner

N_TOKENS = 4096
LEAST_CTX = 32
FRACTION = 0.3
# what a score may differ in and still be gone on with
FREE_SETTINGS = ("n_gpu_layers", "devices", "rpc_servers", "n_path")


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
    n_tokens: int = N_TOKENS,
    n_ctx: int = 512,
    n_path: int | None = None,
    shortcuts: bool = True,
    heal: bool = False,
    show_progress: bool = False,
    on_window: Callable[[], object] = lambda: None,
    **options: Any,
) -> Score:
    """Measure what each block costs, and the greedy order in which blocks go.

    At each step of the greedy path the block goes without which KL divergence from the full model plus
    surprisal of the text is smallest; of blocks that this cannot tell apart on so many tokens, the one
    without which perplexity is lowest.
    Perplexity and divergence count the second half of each window, as llama-perplexity does. A path that is
    made longer later is measured anew from there, with less known about what blocks cost.

    Args:
        model_path: the GGUF file.
        text: a text to calibrate on; None: what the model itself writes after mixed prompts, fixed seed.
        output: the score file, written after each step; one that was begun with the same model, text and
            settings is gone on with, also towards a longer path.
        n_tokens: tokens of the text to use at most, whole windows of n_ctx.
        n_ctx: tokens in a window.
        n_path: blocks on the greedy path; None: 30 % of all.
        shortcuts: False: measure each candidate of each step on all tokens and from the first block on.
        heal: scale each gap by the least-squares factor to the full model's stream, so that the blocks go
            that heal well; `llama_skip.heal` then fits more.
        show_progress: show a bar on stderr.
        on_window: called after each window of each step.
        options: further arguments of `Llama`.

    Raises:
        ValueError: a text or path too short or long, NaN in the logits, an output that holds something else.
        OSError, llama_skip.ModelLoadError: a file cannot be read or written, or is no model.
    """
    at_least(LEAST_CTX, n_ctx=n_ctx)
    at_least(n_ctx, n_tokens=n_tokens)
    if output is not None:
        check_writable(output)
    model = identify(model_path)
    n_path = share_of_blocks(FRACTION, model.n_layer) if n_path is None else n_path
    if not 0 < n_path < model.n_layer:
        raise ArgumentError("n_path", f"{n_path} of {model.n_layer}; at least one has to go, and one to stay")
    options = {**DEFAULTS, **options}
    with Llama(model_path, n_ctx=n_ctx, hidden_states=True, **options) as llm:
        n_windows = n_tokens // n_ctx
        tokens, info = read_text(
            llm,
            text,
            n_ctx=n_ctx,
            n_windows=n_windows,
            n_written=n_windows,
            seed=SEED,
            show_progress=show_progress,
        )
        settings = {
            **{name: value for name, value in options.items() if name not in NO_RESULT},
            "n_tokens": n_tokens,
            "n_ctx": n_ctx,
            "n_path": n_path,
            "shortcuts": shortcuts,
            "rules": {
                "loss": search.LOSS,
                "z": search.Z,
                "slack": search.SLACK,
                "far": search.FAR,
                "ties": "perplexity",
            },
            **({"heal": "scale"} if heal else {}),
        }
        fresh = Score(model, info, json.loads(json.dumps(settings)), False, 0.0, 0.0)
        score = _begun(fresh, output) if output is not None else fresh
        with progress(_steps(info.n_windows, n_path, model.n_layer), shown=show_progress) as bar:
            return _measure(llm, model_path, tokens, score, output, bar, on_window)


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
    settings = {**found.settings, "n_path": n_path}
    return replace(found, settings=settings, complete=found.complete and n_path <= len(found.path))


def _measure(
    llm: Llama,
    model_path: StrPath,
    tokens: Sequence[int],
    score: Score,
    output: StrPath | None,
    bar: Progress,
    on_window: Callable[[], object],
) -> Score:
    """Go on with a score until its path is complete."""
    if score.complete:
        return score
    checkpoint = Checkpoint(output, _key(score))
    windows = text_windows(llm, tokens, score.text.n_ctx)
    race, n_path = score.settings["shortcuts"], score.settings["n_path"]
    heals = "heal" in score.settings
    runner = (ScalingRunner if heals else Runner)(llm, windows[0], shortcuts=race)
    if not score.blocks:
        score = _stream(score, runner, windows, model_path, bar)
    sizes = [block.weights_bytes for block in score.blocks]
    prior = {block.block: block.kld for block in score.blocks if block.kld is not None}
    out = [step.block for step in score.path]
    begun = checkpoint.load(out, after=any(block.n_scored for block in score.blocks))
    if begun and not begun.alive and len(begun.out) < n_path:  # the last step of a shorter path
        begun = search.Sweep(begun.out, _candidates(score, begun.out), prior=begun.prior, scale=begun.scale)
    runner.restore(score.path[-1].skip_scale if score.path else "", out)
    while True:
        if begun:
            runner.restore(begun.scale, begun.out)
        out = begun.out if begun else out
        k = len(out)
        state = begun or search.Sweep(
            out,
            _candidates(score, out) if k < n_path else [],
            prior=prior if out else {},
            scale=runner.scale(out),
        )
        begun = None
        bar.say(f"{k} of {n_path} blocks chosen")

        weight = _weight(k, n_path, llm.n_layer())

        def window_done(state: search.Sweep = state, weight: int = weight) -> None:
            bar.step(weight)
            checkpoint.save(state)
            on_window()

        bar.step(weight * len(state.base))
        search.run(state, runner, windows, n_path=n_path, race=race, on_window=window_done)
        if not out and not state.alive:
            raise ValueError(f"no block can be left out: {next(iter(state.refused.values()))}")
        score = _with_path(score, state, sizes) if out else _with_blocks(score, state)
        score = replace(score, complete=k == n_path or not state.alive)
        if output is not None:
            write_score(output, score)
        if score.complete:
            checkpoint.remove()
            return score
        prior = {**state.prior, **state.costs()}
        out = [*out, state.best()]


def _candidates(score: Score, out: Sequence[int]) -> list[int]:
    return [block.block for block in score.blocks if block.block not in out and block.refused is None]


def _weight(k: int, n_path: int, n_layer: int) -> int:
    """Return about how many evaluations step k takes a window."""
    return n_layer if k == 0 else 1 if k == n_path else 8


def _steps(n_windows: int, n_path: int, n_layer: int) -> int:
    """Return the steps of the progress bar once the text is there."""
    return n_windows * sum((1, *(_weight(k, n_path, n_layer) for k in range(n_path + 1))))


def _stream(
    score: Score, runner: Runner, windows: Sequence[Sequence[int]], model_path: StrPath, bar: Progress
) -> Score:
    """Return the score with what the residual stream says, and with what each block takes."""
    llm, n_layer = runner.llm, score.model.n_layer
    kv_bytes = _kv_bytes(model_path, score.settings, n_layer)
    blocks = [BlockScore(il, weights_bytes=n) for il, n in enumerate(block_bytes(model_path))]
    blocks = [replace(block, kv_bytes_per_token=kv_bytes[block.block]) for block in blocks]
    if not runner.has_states:
        bar.step(len(windows))
        return replace(score, blocks=blocks)
    bar.say("residual stream")
    statistics = StreamStatistics(n_layer)
    llm.set_mask(None)
    for index, window in enumerate(windows):
        states = llm.hidden_states(window)
        runner.keep(index, states.inputs[-1])
        statistics.add(states.inputs, states.outputs[-1])
        bar.step()
    norms = statistics.norms.tolist()
    blocks = [
        replace(block, influence=influence, norm_in=norm_in, norm_out=norm_out)
        for block, influence, norm_in, norm_out in zip(
            blocks, statistics.influence.tolist(), norms, norms[1:], strict=False
        )
    ]
    return replace(score, blocks=blocks, angular=statistics.angular)


def _kv_bytes(model_path: StrPath, settings: Mapping[str, Any], n_layer: int) -> list[float]:
    """Return the KV bytes per token that leaving out each block saves, from dry runs."""
    names = ("n_ctx", "type_k", "type_v", "flash_attn", "n_batch", "n_ubatch", "skip_untested")
    options = {name: settings[name] for name in names if name in settings}

    def kv(layers: list[int]) -> float:
        with Llama(model_path, skip_layers=layers, dry_run=True, verbose=False, **options) as llm:
            return sum(device.kv for device in llm.memory().values()) * MIB / llm.n_ctx()

    full, saved = kv([]), []
    for il in range(n_layer):
        try:
            saved.append(full - kv([il]))
        except (ValueError, RuntimeError):  # this block cannot go, which the search finds out too
            saved.append(0.0)
    return saved


def _with_blocks(score: Score, state: search.Sweep) -> Score:
    """Return the score with what the first step measured."""
    full, _ = summary(state.base)
    blocks = []
    for block in score.blocks:
        if block.block in state.samples:
            ppl, kld = summary(state.samples[block.block])
            block = replace(
                block,
                perplexity=ppl.value,
                perplexity_error=ppl.error,
                kld=kld.mean,
                kld_error=kld.error,
                n_scored=kld.n_tokens,
            )
        blocks.append(replace(block, refused=state.refused.get(block.block)))
    return replace(score, perplexity=full.value, perplexity_error=full.error, blocks=blocks)


def _with_path(score: Score, state: search.Sweep, sizes: Sequence[int]) -> Score:
    """Return the score with one more step, whose block went last."""
    ppl, kld = summary(state.base)
    step = Step(
        block=state.out[-1],
        perplexity=ppl.value,
        perplexity_error=ppl.error,
        kld=kld.mean,
        kld_error=kld.error,
        top1=kld.top1,
        n_scored=kld.n_tokens,
        bytes=sum(sizes[block] for block in state.out),
        skip_scale=state.scale,
    )
    return replace(score, path=[*score.path[: len(state.out) - 1], step])
