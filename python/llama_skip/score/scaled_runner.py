"""Logits with blocks left out and each gap scaled, so that the blocks chosen are those that heal well."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from llama_skip import skipset
from llama_skip.llama.llama import Llama
from llama_skip.measure.weights import token_weights
from llama_skip.model.loaded import HiddenStates, Trace
from llama_skip.score.runner import Logits, Runner
from llama_skip.skipset import Unit

N_FITTED = 2  # windows that the factors of a step are fitted on

Stream = npt.NDArray[np.float32]
Gap = tuple[int, int]


class ScalingRunner(Runner):
    """A Runner with a factor in each gap: least squares from the stream before it to the full one behind."""

    def __init__(
        self, llm: Llama, sample: Sequence[int], *, shortcuts: bool = True, halves: Sequence[Unit] = ()
    ) -> None:
        super().__init__(llm, sample, shortcuts=shortcuts, halves=halves)
        if not self.has_states:
            raise ValueError(
                "this architecture does not show its residual stream, which scales are fitted on"
            )
        self.factors: dict[Gap, float] = {}

    def prepare(
        self, windows: Sequence[Sequence[int]], out: Sequence[Unit], candidates: Iterable[Unit]
    ) -> None:
        """Fit the gaps that `out` has with each candidate; its own were fitted when they were candidates."""
        self.restore(self.scale(out), out)
        wanted = {(gap.start, gap.stop) for unit in candidates for gap in _gaps([*out, unit])}
        wanted -= set(self.factors)
        sums = {gap: np.zeros(2) for gap in wanted}
        for window in windows[:N_FITTED] if wanted else ():
            self.llm.set_mask(None)
            full = self.llm.hidden_states(window)
            self._set_mask(out)
            pruned = self.llm.hidden_states(window)
            for gap in wanted:
                sums[gap] += _products(_before(pruned, full, gap[0]), _behind(full, gap[1]))
        self.factors.update({gap: float(xt / xx) for gap, (xt, xx) in sums.items()})

    def scale(self, out: Iterable[Unit]) -> str:
        """Return the factors of the gaps, as for `--skip-scale`."""
        gaps = ((gap.start, gap.stop) for gap in _gaps(out))
        return ",".join(f"{gap[0]}:{self.factors[gap]!r}" for gap in gaps if gap in self.factors)

    def restore(self, scale: str, out: Sequence[Unit]) -> None:
        """Take the factors of the gaps of `out` from what scale() returned, and forget all others."""
        factors = skipset.parse_scale(scale)
        self.factors = {(g.start, g.stop): factors[g.start] for g in _gaps(out) if g.start in factors}

    def _resume(self, stream: Stream, out: Sequence[Unit]) -> Logits:
        items = (item for item in self.scale(out).split(",") if not item.startswith("0:"))
        self.llm.set_mask(out, ",".join(items) or None)  # the stream has the first gap's factor already
        return self._logits(stream)

    def _set_mask(self, out: Sequence[Unit]) -> None:
        self.llm.set_mask(out, self.scale(out) or None)

    def _start(self, out: Sequence[Unit], unit: Unit, trace: Trace) -> Stream:
        """Return what enters the block behind the gap that a block falls into, or the block of a half."""
        stream: Stream = trace.inputs[trace.blocks.index(skipset.block_of(unit))]
        if not isinstance(unit, int):
            return stream
        gap = next((g.start, g.stop) for g in _gaps([*out, unit]) if unit in g)
        before = self.factors.get((gap[0], unit), 1.0)  # of the part of the gap that was there
        factor: Stream = stream * np.float32(self.factors.get(gap, 1.0) / before)
        return factor


def _gaps(out: Iterable[Unit]) -> list[range]:
    return skipset.gaps(skipset.whole(out))


def _before(pruned: HiddenStates, full: HiddenStates, start: int) -> Stream:
    """Return what enters a gap, before the factor that it may have already."""
    if start == 0:
        entering: Stream = full.inputs[0]
        return entering
    leaving: Stream = pruned.outputs[pruned.blocks.index(start - 1)]
    return leaving


def _behind(full: HiddenStates, end: int) -> Stream:
    """Return the full model's stream where a gap ends."""
    stream: Stream = full.inputs[end] if end < len(full.blocks) else full.outputs[-1]
    return stream


def _products(x: Stream, t: Stream) -> npt.NDArray[np.float64]:
    """Return the weighted sums of x t and of x x, as regression.Sums weighs tokens."""
    w = token_weights(t)
    xt = np.einsum("ni,ni->n", x, t, dtype=np.float64)
    xx = np.einsum("ni,ni->n", x, x, dtype=np.float64)
    return np.array([xt @ w, xx @ w])
