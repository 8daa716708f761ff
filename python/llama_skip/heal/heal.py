"""A bypass for each gap of a plan, fitted on the model's own hidden states and chosen on text held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llama_skip import skipset
from llama_skip.errors import ArgumentError, at_least
from llama_skip.files.identity import Identity, TextInfo, block_bytes, check_same, half_bytes, identify
from llama_skip.files.store import StrPath, check_writable, part_path
from llama_skip.heal import healer
from llama_skip.heal.healer import Healer
from llama_skip.heal.masked import gaps_of
from llama_skip.heal.trials import Trial
from llama_skip.llama.llama import Llama
from llama_skip.measure.candidates import text_windows
from llama_skip.measure.splits import held_out
from llama_skip.measure.text import read_text
from llama_skip.model.options import DEFAULTS
from llama_skip.plan.file import Plan, read_plan, write_plan
from llama_skip.plan.found import Found, Healing
from llama_skip.progress import Log, progress

N_TOKENS = 32768
LEAST_CTX = 32
OWN_WRITING = 0.25
HEALED = ", healed"
SEED = 8642  # of the model's own writing


def heal_plan(
    model_path: StrPath,
    *,
    plan: Plan | StrPath | None = None,
    skip_layers: skipset.Layers | None = None,
    text: StrPath | None = None,
    output: StrPath | None = None,
    rank: int | None = None,
    n_tokens: int = N_TOKENS,
    own_writing: float = OWN_WRITING,
    n_ctx: int = 512,
    show_progress: bool = False,
    log: Log = lambda line: None,
    **options: Any,
) -> Plan:
    """Fit a bypass for each gap of a plan: the identity, a scale, a factor a channel, or a linear map.

    Gaps are runs of whole blocks. Behind a block of which a half is left out, and that no gap follows, is one
    more place for a bypass, fitted like a gap. They go in order. Each is fitted by least squares from the
    stream that enters it, in the model without the blocks and with the bypasses before it, to the full
    model's stream where it ends. The last eighth of each text is not fitted on: there KL
    divergence from the full model says which tier, penalty and rank is used, with maps of the full model's
    streams in later gaps.

    Args:
        model_path: the GGUF file.
        plan: what to leave out, or its file; its own factors and bypass are fitted anew.
        skip_layers: what to leave out, as for `Llama`, instead of a plan.
        text: a text to fit on; None: what the model itself writes after mixed prompts, fixed seed.
        output: the plan file to write. `OUTPUT.part` keeps what is done after each gap, and the same call
            goes on from there.
        rank: of the linear maps at most; None: a quarter of the width. A bypass takes at most a tenth of its
            gap's bytes.
        n_tokens: tokens to use at most, whole windows of n_ctx.
        own_writing: the share of these that the model itself writes beside a text, so that what is fitted to
            the text does no harm elsewhere; 0 to less than 1.
        n_ctx: tokens in a window.
        show_progress: show a bar on stderr.
        log: called with each line that a user should see.
        options: further arguments of `Llama`.

    Returns:
        The plan; its `found.heal` has every trial. Its file is a GGUF where a gap has tensors, else JSON.

    Raises:
        ValueError: nothing is left out, a bad set, the plan of another model, a text that is too short, or
            NaN in the logits.
        RuntimeError: an architecture that names or shapes the residual stream in another way than most.
        OSError, llama_skip.ModelLoadError: a file cannot be read or written, or is no model.
    """
    at_least(LEAST_CTX, n_ctx=n_ctx)
    at_least(2 * n_ctx, n_tokens=n_tokens)
    if not 0 <= own_writing < 1:
        raise ArgumentError("own_writing", f"{own_writing:g} is out of range, expected 0 to less than 1")
    if rank is not None:
        at_least(1, rank=rank)
    if output is not None:
        check_writable(output)
    part = None if output is None else part_path(output)
    fresh = unhealed(identify(model_path), plan, skip_layers, log)
    (healed,) = heal_sets(
        model_path,
        [fresh],
        [part],
        text=text,
        rank=rank,
        n_tokens=n_tokens,
        own_writing=own_writing,
        n_ctx=n_ctx,
        show_progress=show_progress,
        log=log,
        **options,
    )
    if output is not None:
        write_plan(output, healed)
        part_path(output).unlink()
    return healed


def heal_sets(
    model_path: StrPath,
    plans: Sequence[Plan],
    parts: Sequence[Path | None],
    *,
    text: StrPath | None,
    rank: int | None = None,
    n_tokens: int,
    own_writing: float,
    n_ctx: int,
    show_progress: bool,
    log: Log,
    **options: Any,
) -> list[Plan]:
    """Heal the sets of several plans as heal_plan() does, with one look at the full model.

    Args:
        model_path: the GGUF file.
        plans: those of unhealed().
        parts: files that keep what is done of each after each gap, which the same call goes on from; None:
            it is not kept. They stay.
        text, rank, n_tokens, own_writing, n_ctx, show_progress, log, options: as for heal_plan().

    Raises:
        ValueError, RuntimeError, OSError, llama_skip.ModelLoadError: as by heal_plan().
    """
    sets = [skipset.resolve(model_path, plan.skip_layers or "none", "")[0] for plan in plans]
    if not all(sets):
        raise ValueError("nothing is left out, there is no gap to heal")
    with Llama(model_path, n_ctx=n_ctx, hidden_states=True, **{**DEFAULTS, **options}) as llm:
        windows, infos = _texts(llm, text, n_ctx, n_tokens // n_ctx, own_writing, show_progress)
        begun: list[Plan] = []
        to_do: list[list[range]] = []
        for plan, units, part in zip(plans, sets, parts, strict=True):
            fresh = replace(plan, skip_layers=skipset.ranges_text(units))
            begun.append(_begun(_with_healing(fresh, Healing(infos, rank, list(healer.RIDGES))), part))
            to_do.append(gaps_of(units)[len(_healing(begun[-1]).gaps) :])
        n_held = sum(len(held_out(of_text)) for of_text in windows)
        n_fitted = sum(map(len, windows)) - n_held
        n_gaps = sum(map(len, to_do))
        n_steps = n_fitted * (1 + n_gaps - sum(map(bool, to_do))) + healer.N_TRIALS * n_held * n_gaps
        with progress(n_steps, shown=show_progress) as bar, TemporaryDirectory() as folder:
            sizes: dict[skipset.Unit, int] = {il: n for il, n in enumerate(block_bytes(model_path))}
            sizes.update({half: n for half, n in half_bytes(model_path).items()})
            work = Healer(llm, windows, list(zip(sets, to_do, strict=True)), sizes, rank, Path(folder), bar)
            for i, (units, part) in enumerate(zip(sets, parts, strict=True)):
                if len(plans) > 1 and to_do[i]:
                    log(f"healing {begun[i].skip_layers}")
                for gap in to_do[i]:
                    bar.say(_place(gap))
                    begun[i], tried = work.heal(begun[i], units, gap)
                    begun[i] = _recorded(begun[i], gap, tried)
                    log(_line(gap, tried))
                    if part is not None:
                        write_plan(part, begun[i])
    return begun


def _texts(
    llm: Llama, text: StrPath | None, n_ctx: int, n_windows: int, own_writing: float, show_progress: bool
) -> tuple[list[healer.Windows], list[TextInfo]]:
    """Return the windows of the text and of the model's own writing, each with where it is from."""
    windows: list[healer.Windows] = []
    infos: list[TextInfo] = []

    def add(path: StrPath | None, n: int) -> None:
        tokens, info = read_text(
            llm,
            path,
            n_ctx=n_ctx,
            n_windows=n,
            n_written=n,
            spread=True,
            seed=SEED,
            show_progress=show_progress,
        )
        windows.append(text_windows(llm, tokens, n_ctx))
        infos.append(info)

    n_own = 0 if text is None else round(own_writing * n_windows)
    if n_own < 2:  # one to fit on, one to choose by
        n_own = 0
    add(text, n_windows - n_own)
    n_text = infos[0].n_windows
    if n_text < 2:
        raise ValueError(f"{infos[0].name}: one window of {n_ctx} tokens; one to choose by is needed too")
    n_own = min(n_own, round(n_text * own_writing / (1 - own_writing)))  # of a text that is short
    if n_own >= 2:
        add(None, n_own)
    return windows, infos


def unhealed(
    about: Identity, plan: Plan | StrPath | None, skip_layers: skipset.Layers | None, log: Log
) -> Plan:
    """Return what is to be healed: a set, without what stands in its gaps."""
    if (plan is None) == (skip_layers is None):
        raise ValueError("name either a plan or skip_layers")
    if plan is None:
        return Plan(about, skipset.layers_text(skip_layers, "skip_layers"), found=Found(f"given{HEALED}"))
    chosen = plan if isinstance(plan, Plan) else read_plan(plan)
    if line := check_same(chosen.model, about, "the plan"):
        log(line)
    if chosen.disk_scale:
        raise ValueError(f"the plan scales blocks on disk ({chosen.disk_scale}), which cannot be healed")
    method = chosen.found.method.removesuffix(HEALED)
    return Plan(about, chosen.skip_layers, disk_layers=chosen.disk_layers, found=Found(method + HEALED))


def _begun(fresh: Plan, part: Path | None) -> Plan:
    """Return what was begun in a file with the same blocks, text and settings, else `fresh`."""
    if part is None or not part.exists():
        return fresh
    found = read_plan(part)
    same = found.model == fresh.model and found.skip_layers == fresh.skip_layers
    same = same and found.found.heal is not None and replace(found.found.heal, gaps=[]) == fresh.found.heal
    return found if same else fresh


def _recorded(plan: Plan, gap: range, tried: Sequence[Trial]) -> Plan:
    """Return the plan with what was tried for a gap, and with what it costs now."""
    entry = {"gap": gap.start, "n_blocks": len(gap), "trials": [trial.entry() for trial in tried]}
    healing = _healing(plan)
    plan = _with_healing(plan, replace(healing, gaps=[*healing.gaps, entry]))
    return replace(plan, found=replace(plan.found, kld=tried[0].kld, perplexity=tried[0].perplexity))


def _with_healing(plan: Plan, healing: Healing) -> Plan:
    return replace(plan, found=replace(plan.found, heal=healing))


def _healing(plan: Plan) -> Healing:
    assert plan.found.heal is not None
    return plan.found.heal


def _place(gap: range) -> str:
    return f"gap {skipset.ranges_text(gap)}" if gap else f"behind block {gap.start - 1}"


def _line(gap: range, tried: Sequence[Trial]) -> str:
    """Return what a person wants to know about a gap."""
    best, identity = tried[0], next(trial for trial in tried if trial.tier == "identity")
    words = {"scale": f" by {best.factor:.4f}", "linear": f" of rank {best.rank}"}.get(best.tier, "")
    refused = {trial.refused for trial in tried if trial.refused}
    return (
        f"{_place(gap)}: {best.tier}{words}, KL divergence {best.kld:.4f} "
        f"(identity {identity.kld:.4f}) on the text held out" + "".join(f"; {why}" for why in sorted(refused))
    )
