"""Fits the bypass of one gap after the other, and chooses among fits by what they do to the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from llama_skip import skipset
from llama_skip.bypass import bypass
from llama_skip.bypass.bypass import Bypass
from llama_skip.bypass.regression import EPS, LinearFits, Sums
from llama_skip.heal.masked import FullStreams, Masked, Stream, gaps_of
from llama_skip.heal.trials import Race, Trial, with_bypass
from llama_skip.llama.llama import Llama
from llama_skip.measure.splits import held_out
from llama_skip.plan.file import Plan
from llama_skip.progress import Progress
from llama_skip.score.healing_runner import RIDGE
from llama_skip.skipset import Unit

RIDGES = (0.01, 0.03, 0.1, 0.3)
WIDER = 3.0  # a best penalty at an end of these is tried so many times smaller or larger
GAINS = (1.1, 1.2)  # a map explains a part of what blocks do; made to vary as much it may diverge less
N_TRIALS = len(RIDGES) + 5 + len(GAINS)

Windows = Sequence[Sequence[int]]


class Healer:
    """Heals the gaps of sets, those of gaps_of(), which have to go in order.

    Args:
        llm: the full model, loaded with hidden_states=True.
        windows: of each text; the fit does not see held_out() of them.
        sets: blocks and halves, each set with the gaps that are to be healed.
        sizes: bytes of each block and half.
        rank: of linear maps at most; None: RANK_SHARE and BYTES_SHARE decide alone.
        folder: for temporary files.
        bar: is told of each window.
    """

    def __init__(
        self,
        llm: Llama,
        windows: Sequence[Windows],
        sets: Sequence[tuple[Sequence[Unit], Sequence[range]]],
        sizes: Mapping[Unit, int],
        rank: int | None,
        folder: Path,
        bar: Progress,
    ) -> None:
        self.llm = llm
        self.masked = Masked(llm, folder)
        held = [[of_text[i] for i in held_out(of_text)] for of_text in windows]
        self.fitted_on = [
            window for of_text in windows for i, window in enumerate(of_text) if i not in held_out(of_text)
        ]
        ends = {il for _, gaps in sets for gap in gaps for il in (gap.start, gap.stop)}
        self.full = FullStreams(self.masked, self.fitted_on, ends, bar)
        self.race = Race(self.masked, held, [unit for units, _ in sets for unit in units], bar)
        self.sizes = sizes
        self.rank = rank
        self.bar = bar
        self._maps: dict[range, Trial] = {}

    def heal(self, done: Plan, units: Sequence[Unit], gap: range) -> tuple[Plan, list[Trial]]:
        """Return the plan with one more bypass, and what was tried, the best first.

        Args:
            done: a set, with the bypasses of the gaps before.
            units: its blocks and halves.
            gap: the next one.

        Raises:
            ValueError: NaN in the logits of the full model, or without the blocks.
        """
        sums = Sums(self.llm.n_embd())
        for x, t in self.streams(done, units, gap):
            sums.add(x, t)
        fits = sums.linear()
        self.race.begin(done, units, gap, self._later(units, gap))
        best = self.race.add(self._first(units, gap, sums, fits))
        if best.tier == "linear":
            best = self.race.add(self._second(best, fits))
        if best.refused:
            raise ValueError(best.refused)
        return with_bypass(done, best), self.race.found()

    def streams(self, done: Plan, units: Sequence[Unit], gap: range) -> Iterator[tuple[Stream, Stream]]:
        """Yield for each window the stream that enters the gap, and the full model's where it ends.

        Args:
            done, units, gap: as for heal().

        Yields:
            Rows of float32 [n_tokens, n_embd] twice.
        """
        before = [unit for unit in units if skipset.block_of(unit) < gap.stop]
        is_first = set(before) == set(gap)  # nothing is left out before: the full model's stream enters it
        self.full.take()
        if not is_first:
            self.masked.set_until(gap.stop, done, before)
        for i, window in enumerate(self.fitted_on):
            if is_first:
                yield self.full.at(gap.start, i), self.full.at(gap.stop, i)
            else:
                yield self.masked.streams(window, gap.stop)[0], self.full.at(gap.stop, i)
                self.bar.step()

    def _later(self, units: Sequence[Unit], gap: range) -> list[Bypass]:
        """Return what stands in later gaps until it is their turn: maps of the full model's own streams.

        Trials of a gap would tell little beside later ones that are empty.
        """
        later = []
        for other in gaps_of(units):
            if other.start > gap.start and other and (rank := self._rank(units, other)):
                if other not in self._maps:
                    sums = Sums(self.llm.n_embd())
                    for i in range(len(self.fitted_on)):
                        sums.add(self.full.at(other.start, i), self.full.at(other.stop, i))
                    self._maps[other] = _linear(other, sums.linear(), RIDGE, rank)
                later.append(self._maps[other].part)
        return [part for part in later if part is not None]

    def _first(self, units: Sequence[Unit], gap: range, sums: Sums, fits: LinearFits) -> Iterator[Trial]:
        """Yield a trial of each tier, and of each penalty."""
        yield Trial(gap, "identity")
        factor = sums.scale()
        part = None if gap else bypass.scaled(gap, factor, self.llm.n_embd())
        yield Trial(gap, "scale", factor=factor, part=part)
        yield Trial(gap, "affine", part=bypass.affine(gap, *sums.affine()))
        rank = self._rank(units, gap)
        for ridge in RIDGES if rank else ():
            yield _linear(gap, fits, ridge, rank)

    def _second(self, best: Trial, fits: LinearFits) -> Iterator[Trial]:
        """Yield what is close to the best linear map: gains, half its rank, a penalty beyond those tried."""
        for gain in GAINS:
            yield _linear(best.gap, fits, best.ridge, best.rank, gain)
        if best.rank > 1:
            yield _linear(best.gap, fits, best.ridge, best.rank // 2)
        beyond = {RIDGES[0]: 1 / WIDER, RIDGES[-1]: WIDER}
        if best.ridge in beyond:
            yield _linear(best.gap, fits, best.ridge * beyond[best.ridge], best.rank)

    def _rank(self, units: Sequence[Unit], gap: range) -> int:
        """Return the largest rank allowed."""
        halves = [u for u in units if not isinstance(u, int) and u[0] + 1 == gap.start]
        n_bytes = sum(self.sizes[unit] for unit in gap or halves)
        return bypass.largest_rank(self.llm.n_embd(), n_bytes, self.rank)


def _linear(gap: range, fits: LinearFits, ridge: float, rank: int, gain: float = 1.0) -> Trial:
    fit = fits.fit(ridge, rank, gain)
    part = bypass.linear(gap, fit.u, fit.v, fit.b, EPS)
    return Trial(gap, "linear", rank=rank, ridge=ridge, gain=gain, part=part)
