"""Fits the bypass of one gap after the other, and chooses among fits by what they do to the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_skip import skipset
from llama_skip.bypass import bypass
from llama_skip.bypass.bypass import Bypass
from llama_skip.bypass.regression import EPS, LinearFits, Sums
from llama_skip.llama.llama import Llama
from llama_skip.measure.divergence import Scored, score_window, summary
from llama_skip.measure.splits import held_out
from llama_skip.model.loaded import HiddenStates, Trace
from llama_skip.plan.file import Plan, write_plan
from llama_skip.progress import Progress
from llama_skip.score.healing_runner import RIDGE
from llama_skip.skipset import Unit

CHUNK = 8  # windows whose streams are held at a time
RIDGES = (0.01, 0.03, 0.1, 0.3)
WIDER = 3.0  # a best penalty at an end of these is tried so many times smaller or larger
N_TRIALS = len(RIDGES) + 5

Stream = npt.NDArray[np.float32]
Windows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Trial:
    """A bypass of one gap, with what the model does on the text held out; later gaps are filled() meanwhile.

    Attributes:
        gap: its blocks.
        tier: one of bypass.TIERS.
        factor: of the scale.
        rank, ridge: of the linear map.
        part: the tensors.
        kld: KL divergence from the full model, nats per token; infinite where that is not known.
        perplexity: of the text held out.
        refused: why it cannot be used.
    """

    gap: range
    tier: str
    factor: float = 1.0
    rank: int = 0
    ridge: float = 0.0
    part: Bypass | None = None
    kld: float = np.inf
    perplexity: float = np.inf
    refused: str | None = None

    def entry(self) -> dict[str, Any]:
        """Return what a plan says of it."""
        names = {"scale": ("factor",), "linear": ("rank", "ridge")}.get(self.tier, ())
        found = {name: getattr(self, name) for name in ("tier", *names)}
        found["kld"] = self.kld if np.isfinite(self.kld) else None
        return found | ({"refused": self.refused} if self.refused else {})


def gaps_of(units: Iterable[Unit]) -> list[range]:
    """Return where a set's bypasses stand, in order.

    Returns:
        Its gaps, and an empty range behind each block of which a half is left out, unless a gap begins there.
    """
    units = list(units)
    out = set(skipset.whole(units))
    behind = {skipset.block_of(unit) + 1 for unit in units if not isinstance(unit, int)}
    found = [*skipset.gaps(out), *(range(il, il) for il in behind - out)]
    return sorted(found, key=lambda gap: gap.start)


class Healer:
    """Heals a set's gaps, those of gaps_of(), which have to go in order.

    Args:
        llm: the full model, loaded with hidden_states=True.
        windows: of each text; the fit does not see held_out() of them.
        units: the set, blocks and halves.
        sizes: bytes of each block and half.
        rank: of linear maps at most; None: RANK_SHARE and BYTES_SHARE decide alone.
        folder: for temporary files.
        bar: is told of each window.
    """

    def __init__(
        self,
        llm: Llama,
        windows: Sequence[Windows],
        units: Sequence[Unit],
        sizes: Mapping[Unit, int],
        rank: int | None,
        folder: Path,
        bar: Progress,
    ) -> None:
        self.llm = llm
        self.held_out = [of_text[i] for of_text in windows for i in held_out(of_text)]
        self.fitted_on = [
            window for of_text in windows for i, window in enumerate(of_text) if i not in held_out(of_text)
        ]
        self.units = units
        self.sizes = sizes
        self.rank = rank
        self.folder = folder
        self.bar = bar
        self._filled: dict[range, Bypass] | None = None

    def heal(self, done: Plan, gap: range) -> tuple[Plan, list[Trial]]:
        """Return the plan with one more bypass, and what was tried, the best first.

        Args:
            done: the whole set, with the bypasses of the gaps before.
            gap: the next one.

        Raises:
            ValueError: NaN in the logits of the full model, or without the blocks.
        """
        sums = Sums(self.llm.n_embd())
        for x, t in self.streams(done, gap):
            sums.add(x, t)
        fits = sums.linear()
        later = [part for other, part in self.filled(done).items() if other.start > gap.start]
        tried = self._tried(done, self._first(gap, sums, fits), later)
        best = min(tried, key=lambda trial: trial.kld)
        if best.tier == "linear":
            tried += self._tried(done, self._second(best, fits), later)
        tried.sort(key=lambda trial: trial.kld)
        if tried[0].refused:
            raise ValueError(tried[0].refused)
        return with_bypass(done, tried[0]), tried

    def filled(self, plan: Plan) -> dict[range, Bypass]:
        """Return what stands in the plan's gaps until it is their turn: maps of the full model's own streams.

        Trials of a gap would tell little beside later ones that are empty.
        """
        if self._filled is None:
            gaps = [gap for gap in gaps_of(self.units)[1:] if gap and self._rank(gap)]
            sums = {gap: Sums(self.llm.n_embd()) for gap in gaps}
            if gaps:  # what comes after the last is of no use here
                behind = range(gaps[-1].stop + 1, self.llm.n_layer())
                self._leave_out(replace(plan, skip_scale="", bypass=[]), [], behind)
            for window in self.fitted_on if gaps else ():
                ends = [il for gap in gaps for il in (gap.start, gap.stop)]
                found = self._streams(window, *ends)
                for gap, x, t in zip(gaps, found[::2], found[1::2], strict=True):
                    sums[gap].add(x, t)
            self._filled = {}
            for gap in gaps:
                trial = _linear(gap, sums[gap].linear(), RIDGE, self._rank(gap))
                assert trial.part is not None
                self._filled[gap] = trial.part
        return self._filled

    def streams(self, done: Plan, gap: range) -> Iterator[tuple[Stream, Stream]]:
        """Yield for each window the stream that enters the gap, and the full model's where it ends.

        Args:
            done: the whole set, with the bypasses of the gaps before.
            gap: of the set.

        Yields:
            Rows of float32 [n_tokens, n_embd] twice.
        """
        behind = range(gap.stop + 1, self.llm.n_layer())  # what comes after is of no use here
        units = [unit for unit in self.units if skipset.block_of(unit) < gap.stop]
        if set(units) == set(gap):  # nothing is left out before, so that the full model's stream enters it
            self._leave_out(replace(done, skip_scale="", bypass=[]), [], behind)
            for window in self.fitted_on:
                x, t = self._streams(window, gap.start, gap.stop)
                yield x, t
                self.bar.step()
            return
        for i in range(0, len(self.fitted_on), CHUNK):
            windows = self.fitted_on[i : i + CHUNK]
            self._leave_out(replace(done, skip_scale="", bypass=[]), [], behind)
            targets = [self._streams(window, gap.stop)[0] for window in windows]
            self._leave_out(done, units, behind)
            for window, target in zip(windows, targets, strict=True):
                yield self._streams(window, gap.stop)[0], target
                self.bar.step()

    def _leave_out(self, plan: Plan, units: list[Unit], behind: range) -> None:
        """Mask `units` with the bypasses of `plan`, and where the architecture allows that `behind` too."""
        try:
            self._mask(replace(plan, skip_layers=skipset.ranges_text([*units, *behind])))
        except ValueError:
            self._mask(replace(plan, skip_layers=skipset.ranges_text(units)))

    def _mask(self, plan: Plan) -> None:
        if not plan.bypass:
            self.llm.set_mask(plan.skip_layers or None, plan.skip_scale or None)
            return
        path = self.folder / "mask.gguf"
        write_plan(path, plan)
        self.llm.set_mask(f"@{path}")

    def _streams(self, window: Sequence[int], *at: int) -> list[Stream]:
        """Return the streams that enter blocks, under the mask; n_layer: that leaves the last block."""
        n_layer = self.llm.n_layer()
        found: Trace | HiddenStates
        if n_layer in at:
            found = states = self.llm.hidden_states(window)
            last = {n_layer: states.outputs[-1]}
        else:
            found, last = self.llm.trace(window, first=len(window) - 1), {}
        return [last[il] if il in last else found.inputs[found.blocks.index(il)] for il in at]

    def _first(self, gap: range, sums: Sums, fits: LinearFits) -> Iterator[Trial]:
        """Yield a trial of each tier, and of each penalty."""
        yield Trial(gap, "identity")
        factor = sums.scale()
        part = None if gap else bypass.scaled(gap, factor, self.llm.n_embd())
        yield Trial(gap, "scale", factor=factor, part=part)
        yield Trial(gap, "affine", part=bypass.affine(gap, *sums.affine()))
        rank = self._rank(gap)
        for ridge in RIDGES if rank else ():
            yield _linear(gap, fits, ridge, rank)

    def _second(self, best: Trial, fits: LinearFits) -> Iterator[Trial]:
        """Yield what is close to the best linear map: half its rank, and a penalty beyond those tried."""
        if best.rank > 1:
            yield _linear(best.gap, fits, best.ridge, best.rank // 2)
        beyond = {RIDGES[0]: 1 / WIDER, RIDGES[-1]: WIDER}
        if best.ridge in beyond:
            yield _linear(best.gap, fits, best.ridge * beyond[best.ridge], best.rank)

    def _rank(self, gap: range) -> int:
        """Return the largest rank allowed."""
        halves = [u for u in self.units if not isinstance(u, int) and u[0] + 1 == gap.start]
        n_bytes = sum(self.sizes[unit] for unit in gap or halves)
        return bypass.largest_rank(self.llm.n_embd(), n_bytes, self.rank)

    def _tried(self, done: Plan, trials: Iterator[Trial], later: Sequence[Bypass]) -> list[Trial]:
        """Return the trials with what they do on the text held out, beside `later` in the gaps behind."""
        tried, pieces = list(trials), dict[int, list[Scored]]()
        for window in self.held_out:
            self.llm.set_mask(None)
            _, logits = score_window(self.llm, window)
            for i, trial in enumerate(tried):
                if trial.refused:
                    continue
                try:
                    plan = with_bypass(done, trial)
                    self._mask(replace(plan, bypass=[*plan.bypass, *later]))
                    pieces.setdefault(i, []).append(score_window(self.llm, window, logits)[0])
                except ValueError as err:  # there is no place for it, or the logits are no numbers
                    tried[i] = replace(trial, refused=str(err))
                self.bar.step()
        return [trial if trial.refused else _measured(trial, pieces[i]) for i, trial in enumerate(tried)]


def with_bypass(plan: Plan, trial: Trial) -> Plan:
    """Return the plan with a trial's bypass."""
    if trial.tier == "scale" and trial.part is None:
        item = f"{trial.gap.start}:{trial.factor!r}"
        return replace(plan, skip_scale=f"{plan.skip_scale},{item}".lstrip(","))
    return plan if trial.part is None else replace(plan, bypass=[*plan.bypass, trial.part])


def _measured(trial: Trial, pieces: Sequence[Scored]) -> Trial:
    ppl, kld = summary(pieces)
    return replace(trial, kld=kld.mean, perplexity=ppl.value)


def _linear(gap: range, fits: LinearFits, ridge: float, rank: int) -> Trial:
    fit = fits.fit(ridge, rank)
    part = bypass.linear(gap, fit.u, fit.v, fit.b, EPS)
    return Trial(gap, "linear", rank=rank, ridge=ridge, part=part)
