"""The greedy order in which blocks go: each time the one without which the loss is least.

The loss of a token is its KL divergence from the full model plus its surprisal: what cross-entropy against
the full model and the text in equal parts adds up to, short of a constant. Divergence alone does not see that
some blocks make this text less likely.

The candidates of a step race: all are measured on the same windows, and those that are clearly worse than the
best one retire. Who need not start follows from the divergence that a block cost when it was last measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llama_skip.measure.divergence import Scored, scored
from llama_skip.model.loaded import Trace
from llama_skip.score.runner import Logits, Runner

Z = 2.0  # standard errors by which a candidate that retires diverges more than the best one
SLACK = 2.0  # a block may have become cheaper by this factor since it was last measured
FAR = 2.0  # a block that alone costs so many times what the path's dearest does is not measured closer
LOSS = "kld+surprisal"


@dataclass
class Sweep:
    """One step: the model without the blocks that went, and without one more of each candidate.

    Attributes:
        out: the blocks that went.
        alive: candidates that are still measured, cheapest first by what is known before.
        base: what the model without `out` gives, a piece for each window.
        samples: the same for each candidate; one that retired has fewer.
        refused: why a candidate cannot be left out.
        prior: what each block cost when it was measured last; {} at the first step.
        scale: what the gaps of `out` are scaled by, as for `--skip-scale`.
    """

    out: list[int]
    alive: list[int]
    base: list[Scored] = field(default_factory=list)
    samples: dict[int, list[Scored]] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    prior: dict[int, float] = field(default_factory=dict)
    scale: str = ""

    def loss(self, block: int) -> npt.NDArray[np.float64]:
        """Return the loss without `block` too, nats, of each token it was measured on."""
        return np.concatenate([_loss(piece) for piece in self.samples[block]])

    def costs(self) -> dict[int, float]:
        """Return by how much the mean KL divergence grows without each block, where it was measured."""
        base = [piece.kld.mean() for piece in self.base]
        return {
            block: float(np.mean([piece.kld.mean() for piece in pieces]) - np.mean(base[: len(pieces)]))
            for block, pieces in self.samples.items()
        }

    def first(self) -> list[int]:
        """Return the candidates that do not lose more than the best one by more than chance."""
        best = min((self.loss(block) for block in self.alive), key=lambda loss: float(loss.mean()))

        def may_win(block: int) -> bool:
            worse = self.loss(block) - best
            return bool(worse.mean() <= Z * worse.std() / np.sqrt(worse.size))

        return [block for block in self.alive if may_win(block)]

    def best(self) -> int:
        """Return the candidate with the lowest perplexity of those."""
        return min(self.first(), key=lambda b: np.mean([p.surprisal.mean() for p in self.samples[b]]))


def run(
    state: Sweep,
    runner: Runner,
    windows: Sequence[Sequence[int]],
    *,
    n_path: int,
    race: bool = True,
    on_window: Callable[[], object] = lambda: None,
) -> None:
    """Measure a step from the window on that `state` stopped at, and add what is found to it.

    Args:
        state: the step.
        runner: gives the logits.
        windows: of the text.
        n_path: blocks that are to go in all.
        race: False: measure every candidate on every window.
        on_window: called after each window.

    Raises:
        ValueError: NaN or infinity in the logits.
    """
    state.alive.sort(key=lambda block: state.prior.get(block, 0.0))
    runner.prepare(windows, state.out, [*state.alive, *state.samples])
    for index in range(len(state.base), len(windows)):
        window = windows[index]
        alive = state.alive
        racing = len(alive) > 1 or any(not race or block not in state.samples for block in alive)
        trace = runner.trace(window, state.out, logits_only=not racing)
        full = runner.reference(index, window) if state.out else trace.logits
        base = scored(trace.logits, window, full if state.out else None)
        if racing:
            _measure(state, runner, window, trace, full, base, race)
        state.base.append(base)
        if race and racing and state.alive:
            if state.out:
                state.alive = state.first()
            elif 4 * len(state.base) >= len(windows):
                _retire_far(state, n_path)
        on_window()


def _measure(
    state: Sweep,
    runner: Runner,
    window: Sequence[int],
    trace: Trace,
    full: Logits,
    base: Scored,
    race: bool,
) -> None:
    least = np.inf  # what the cheapest candidate may cost, with the doubt of one window
    for block in list(state.alive):
        prior = state.prior.get(block, 0.0)
        if race and block not in state.samples and prior > SLACK * least:
            state.alive.remove(block)  # and so are all that follow, which cost more
            continue
        try:
            piece = scored(runner.without(window, state.out, block, trace), window, full)
        except ValueError as err:  # the set is refused, or there is no logit that is a number
            state.refused[block] = str(err)
            state.alive.remove(block)
            state.samples.pop(block, None)
            continue
        state.samples.setdefault(block, []).append(piece)
        growth = piece.kld - base.kld
        least = min(least, max(prior, float(growth.mean() + Z * growth.std() / np.sqrt(growth.size))))


def _retire_far(state: Sweep, n_path: int) -> None:
    """Retire blocks that alone cost much more than any on the path will."""
    costs = state.costs()
    limit = FAR * sorted(costs[block] for block in state.alive)[min(n_path, len(state.alive)) - 1]
    state.alive = [block for block in state.alive if costs[block] <= limit]


def _loss(piece: Scored) -> npt.NDArray[np.float64]:
    return piece.kld + piece.surprisal
