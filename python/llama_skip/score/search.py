"""The greedy order in which blocks go: each time the one without which the loss is least.

Where halves of blocks can go too, it is what costs least for what it saves: growth of the loss per byte, KV
byte or millisecond.

The loss of a token is its KL divergence from the full model plus its surprisal: what cross-entropy against
the full model and the text in equal parts adds up to, short of a constant. Divergence alone does not see that
some blocks make this text less likely.

The candidates of a step race: all are measured on the same windows, and those that are clearly worse than the
best one retire. Who need not start follows from the divergence that a block cost when it was last measured:
that hardly falls as others go, but for blocks next to these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from llama_skip.measure.divergence import Scored, scored
from llama_skip.model.loaded import Trace
from llama_skip.score.runner import Logits, Runner
from llama_skip.skipset import Unit, block_of

Z = 2.0  # standard errors by which a candidate that retires diverges more than the best one
SLACK = 2.0  # what is next to a gap may have become cheaper by this factor since it was last measured
APART = 1.3  # and anything else by this one
FAR = 2.0  # a block that alone costs so many times what the path's dearest does is not measured closer
FIRST = 8  # one in so many windows is measured before blocks alone retire that are a little worse
LOSS = "kld+surprisal"

Floats = npt.NDArray[np.float64]
T = TypeVar("T")


def may_win(losses: Mapping[T, Floats]) -> list[T]:
    """Return what does not lose more than the best one by more than chance, of losses on the same tokens."""
    best = min(losses.values(), key=lambda loss: float(loss.mean()))
    worse = {name: loss - best for name, loss in losses.items()}
    return [name for name, w in worse.items() if w.mean() <= Z * w.std() / np.sqrt(w.size)]


@dataclass
class Sweep:
    """One step: the model without what went, and without one more of each candidate.

    Attributes:
        out: what went, blocks and halves.
        alive: candidates that are still measured, cheapest first by what is known before.
        base: what the model without `out` gives, a piece for each window.
        known: the same, as far as it was measured when the last of `out` was a candidate.
        samples: the same for each candidate; one that retired has fewer.
        refused: why a candidate cannot be left out.
        prior: what each candidate cost when it was measured last; {} at the first step.
        saves: what each candidate saves beyond `out`; 1 where nothing is said.
        blocks_first: of what cannot be told apart a whole block goes rather than a half.
    """

    out: list[Unit]
    alive: list[Unit]
    base: list[Scored] = field(default_factory=list)
    samples: dict[Unit, list[Scored]] = field(default_factory=dict)
    refused: dict[Unit, str] = field(default_factory=dict)
    prior: dict[Unit, float] = field(default_factory=dict)
    saves: Mapping[Unit, float] = field(default_factory=dict)
    blocks_first: bool = False
    known: Sequence[Scored] = ()

    def costs(self) -> dict[Unit, float]:
        """Return by how much the mean KL divergence grows without each candidate, where it was measured."""
        base = [piece.kld.mean() for piece in self.base]
        return {
            unit: float(np.mean([piece.kld.mean() for piece in pieces]) - np.mean(base[: len(pieces)]))
            for unit, pieces in self.samples.items()
        }

    def rate(self, unit: Unit, cost: float) -> float:
        """Return a cost for what a candidate saves."""
        return cost / self.saves.get(unit, 1.0)

    def losses(self, unit: Unit) -> Floats:
        """Return the loss without `unit` too, nats for what it saves, of each token it was measured on.

        Something that is the same for all candidates is added to it.
        """
        pieces = self.samples[unit]
        loss = np.concatenate([_loss(piece) for piece in pieces])
        if (saves := self.saves.get(unit, 1.0)) == 1:
            return loss
        base: Floats = np.concatenate([_loss(piece) for piece in self.base[: len(pieces)]])
        grown: Floats = base + (loss - base) / saves
        return grown

    def surprisal(self, unit: Unit) -> float:
        """Return the mean surprisal in the same way."""
        pieces = self.samples[unit]
        mean = np.mean([piece.surprisal.mean() for piece in pieces])
        if (saves := self.saves.get(unit, 1.0)) == 1:
            return float(mean)
        base = np.mean([piece.surprisal.mean() for piece in self.base[: len(pieces)]])
        return float(base + (mean - base) / saves)

    def first(self) -> list[Unit]:
        """Return the candidates that do not lose more than the best one by more than chance."""
        return may_win({unit: self.losses(unit) for unit in self.alive})

    def best(self) -> Unit:
        """Return the one of those with the lowest perplexity, of the whole blocks first if asked to."""
        first = self.first()
        blocks = [unit for unit in first if isinstance(unit, int)] if self.blocks_first else []
        return min(blocks or first, key=self.surprisal)


def run(
    state: Sweep,
    runner: Runner,
    windows: Sequence[Sequence[int]],
    *,
    n_path: int,
    race: bool = True,
    most: int | None = None,
    on_window: Callable[[], object] = lambda: None,
) -> None:
    """Measure a step from the window on that `state` stopped at, and add what is found to it.

    Args:
        state: the step.
        runner: gives the logits.
        windows: of the text.
        n_path: blocks that are to go in all.
        race: False: measure every candidate on every window.
        most: candidates of a step behind the first that are measured; None: whoever may be the best.
        on_window: called after each window.

    Raises:
        ValueError: NaN or infinity in the logits.
    """
    state.alive.sort(key=lambda unit: state.rate(unit, state.prior.get(unit, 0.0)))
    for index in range(len(state.base), len(windows)):
        window = windows[index]
        alive = state.alive
        racing = len(alive) > 1 or any(not race or unit not in state.samples for unit in alive)
        if racing:
            known = state.known[index] if index < len(state.known) else None
            trace = runner.trace(window, state.out, until=max(map(block_of, alive)) if known else None)
            full = runner.reference(index, window) if state.out else trace.logits
            base = known or scored(trace.logits, window, full if state.out else None)
            _measure(state, runner, window, trace, full, base, race, most if state.out else None)
        elif index < len(state.known):
            base = state.known[index]
        else:
            full = runner.reference(index, window)
            base = (
                scored(runner.straight(window, state.out), window, full)
                if state.out
                else scored(full, window, None)
            )
        state.base.append(base)
        if race and racing and state.alive:
            if not state.out:
                _retire_far(state, n_path)
            if state.out or FIRST * len(state.base) >= len(windows):
                state.alive = state.first()
        on_window()


def _measure(
    state: Sweep,
    runner: Runner,
    window: Sequence[int],
    trace: Trace,
    full: Logits,
    base: Scored,
    race: bool,
    most: int | None,
) -> None:
    least = np.inf  # what the cheapest candidate may cost, with the doubt of one window
    for unit in list(state.alive):
        prior = state.rate(unit, state.prior.get(unit, 0.0))
        slack = SLACK if _next_to(unit, state.out) else APART
        is_late = prior > slack * least or len(state.samples) == most
        if race and unit not in state.samples and is_late:
            state.alive.remove(unit)
            continue
        try:
            piece = scored(runner.without(window, state.out, unit, trace), window, full)
        except ValueError as err:  # the set is refused, or there is no logit that is a number
            state.refused[unit] = str(err)
            state.alive.remove(unit)
            state.samples.pop(unit, None)
            continue
        state.samples.setdefault(unit, []).append(piece)
        growth = piece.kld - base.kld
        doubt = float(growth.mean() + Z * growth.std() / np.sqrt(growth.size))
        least = min(least, max(prior, state.rate(unit, doubt)))


def _next_to(unit: Unit, out: Sequence[Unit]) -> bool:
    """Return whether something went of the same block or of one beside it."""
    return any(abs(block_of(other) - block_of(unit)) <= 1 for other in out)


def _retire_far(state: Sweep, n_path: int) -> None:
    """Retire what cannot be the best and alone costs much more for what it saves than the path does."""
    rates = {unit: state.rate(unit, cost) for unit, cost in state.costs().items()}
    path: list[Unit] = []
    for unit in sorted(state.alive, key=rates.__getitem__):
        if block_of(unit) not in map(block_of, path):
            path.append(unit)
        if sum(state.saves.get(other, 1.0) for other in path) >= n_path:
            break
    limit, first = FAR * rates[path[-1]], state.first()
    state.alive = [unit for unit in state.alive if rates[unit] <= limit or unit in first]


def _loss(piece: Scored) -> Floats:
    return piece.kld + piece.surprisal
