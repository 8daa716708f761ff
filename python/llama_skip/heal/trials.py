"""Bypasses of a gap, raced on text held out by what they do to the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count, zip_longest
from typing import Any

import numpy as np

from llama_skip import skipset
from llama_skip.bypass.bypass import Bypass
from llama_skip.heal.masked import Masked, Stream, gaps_of
from llama_skip.measure.divergence import Scored, scored, summary
from llama_skip.model.loaded import Trace
from llama_skip.plan.file import Plan
from llama_skip.progress import Progress
from llama_skip.score.runner import Runner
from llama_skip.score.search import Floats, may_win
from llama_skip.skipset import Unit


@dataclass(frozen=True)
class Trial:
    """A bypass of one gap, with what the model does on the text held out; later gaps are filled meanwhile.

    Attributes:
        gap: its blocks.
        tier: one of bypass.TIERS.
        factor: of the scale.
        rank, ridge, gain: of the linear map.
        part: the tensors.
        kld: KL divergence from the full model, nats per token; infinite where that is not known. That of one
            that retired is the best one's, and by how much it was worse where both were measured.
        perplexity: of the text held out; infinite where not all of that was measured.
        refused: why it cannot be used.
    """

    gap: range
    tier: str
    factor: float = 1.0
    rank: int = 0
    ridge: float = 0.0
    gain: float = 1.0
    part: Bypass | None = None
    kld: float = np.inf
    perplexity: float = np.inf
    refused: str | None = None

    def entry(self) -> dict[str, Any]:
        """Return what a plan says of it."""
        names = {"scale": ("factor",), "linear": ("rank", "ridge", "gain")}.get(self.tier, ())
        found = {name: getattr(self, name) for name in ("tier", *names)}
        found["kld"] = self.kld if np.isfinite(self.kld) else None
        return found | ({"refused": self.refused} if self.refused else {})


def with_bypass(plan: Plan, trial: Trial) -> Plan:
    """Return the plan with a trial's bypass."""
    if trial.tier == "scale" and trial.part is None:
        item = f"{trial.gap.start}:{trial.factor!r}"
        return replace(plan, skip_scale=f"{plan.skip_scale},{item}".lstrip(","))
    return plan if trial.part is None else replace(plan, bypass=[*plan.bypass, trial.part])


class Race(Runner):
    """Trials of one gap after the other; those that clearly diverge more than the best one retire.

    What comes before the gap is computed once for all its trials, where a Runner's shortcuts work.
    """

    def __init__(
        self,
        masked: Masked,
        windows: Sequence[Sequence[Sequence[int]]],
        units: Iterable[Unit],
        bar: Progress,
    ) -> None:
        """Take the text.

        Args:
            masked: the full model.
            windows: of each text, held out.
            units: what may be left out, blocks and halves.
            bar: is told of each trial on each window.
        """
        by_turns = zip_longest(*windows)
        self.windows = [window for of_texts in by_turns for window in of_texts if window is not None]
        halves = list(dict.fromkeys(unit for unit in units if not isinstance(unit, int)))
        super().__init__(masked.llm, self.windows[0], halves=halves)
        self.n_texts = len(windows)
        self.masked = masked
        self.bar = bar

    def begin(self, done: Plan, units: Sequence[Unit], gap: range, later: Sequence[Bypass]) -> None:
        """Go to a gap.

        Args:
            done: a set, with the bypasses of the gaps before.
            units: its blocks and halves.
            gap: the gap.
            later: what stands in those behind meanwhile.
        """
        self.done = self.plan = done
        self.units = units
        self.later = later
        has_halves = any(not isinstance(unit, int) for unit in units)
        starts = self.starts_with_halves if has_halves else self.shortcuts
        self.first = gap.start - 1 if starts and gap.start > 0 else None
        self.entering: dict[int, Stream] = {}
        self.trials: list[Trial] = []
        self.pieces: list[list[Scored]] = []

    def add(self, trials: Iterable[Trial]) -> Trial:
        """Race more trials of the gap against those that did not retire, and return the best one now."""
        alive = self._finished()
        for trial in trials:
            alive.append(len(self.trials))
            self.trials.append(trial)
            self.pieces.append([])
        for index, window in enumerate(self.windows):
            for i in list(alive):
                if len(self.pieces[i]) > index:
                    continue
                try:
                    self.pieces[i].append(self._scored(index, window, self.trials[i]))
                except ValueError as err:  # there is no place for it, or the logits are no numbers
                    self.trials[i] = replace(self.trials[i], refused=str(err))
                    self.pieces[i] = []
                    alive.remove(i)
                self.bar.step()
            if alive and index + 1 >= self.n_texts:
                alive = may_win({i: self._kld(i, index + 1) for i in alive})
        return self.found()[0]

    def found(self) -> list[Trial]:
        """Return all trials with what was measured, the best first; those that retired come behind."""
        finished = self._finished()
        if not finished:
            return self.trials
        least = self._kld(min(finished, key=lambda i: float(self._kld(i).mean())))

        def measured(i: int) -> Trial:
            if i in finished:
                ppl, mean = summary(self.pieces[i])
                return replace(self.trials[i], kld=mean.mean, perplexity=ppl.value)
            if not self.pieces[i]:
                return self.trials[i]
            kld = self._kld(i)
            return replace(self.trials[i], kld=float(least.mean() + (kld - least[: kld.size]).mean()))

        order = sorted(map(measured, range(len(self.trials))), key=lambda trial: trial.kld)
        return sorted(order, key=lambda trial: not np.isfinite(trial.perplexity))

    def _finished(self) -> list[int]:
        """Return the trials that were measured on all windows."""
        return [i for i, pieces in enumerate(self.pieces) if len(pieces) == len(self.windows)]

    def _kld(self, i: int, n: int | None = None) -> Floats:
        return np.concatenate([piece.kld for piece in self.pieces[i][:n]])

    def _scored(self, index: int, window: Sequence[int], trial: Trial) -> Scored:
        made = with_bypass(self.done, trial)
        self.plan = replace(made, bypass=[*made.bypass, *self.later])
        none = np.empty((0, 0), np.float32)
        trace = Trace([], none[None], none)
        if self.first is not None:
            if index not in self.entering:
                before = [unit for unit in self.units if skipset.block_of(unit) < self.first]
                self.masked.set_until(self.first, self.done, before)
                self.entering[index] = self.masked.streams(window, self.first)[0]
            trace = Trace([self.first], self.entering[index][None], none)
        logits = self._from(self.first, window, self.units, trace)
        return scored(logits, window, self.reference(index, window))

    def _set_mask(self, out: Sequence[Unit], *, resumed: bool = False, behind: Sequence[int] = ()) -> None:
        starts = {gap.start for gap in gaps_of(out)}
        if resumed:
            whole = set(out)
            before = next(il for il in count() if il not in whole)
            starts = {start for start in starts if start > before}
        factors = skipset.parse_scale(self.plan.skip_scale)
        plan = replace(
            self.plan,
            skip_layers=skipset.ranges_text([*out, *behind]),
            skip_scale=",".join(f"{il}:{factor!r}" for il, factor in factors.items() if il in starts),
            bypass=[part for part in self.plan.bypass if part.gap in starts],
        )
        self.masked.set(plan)
