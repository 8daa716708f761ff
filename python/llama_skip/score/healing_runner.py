"""Logits with blocks left out and a linear map in each gap, so that those blocks go that heal well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llama_skip import skipset
from llama_skip.bypass import bypass
from llama_skip.bypass.bypass import Bypass
from llama_skip.bypass.file import write_bypasses
from llama_skip.bypass.regression import EPS, Sums
from llama_skip.files.identity import Identity
from llama_skip.llama.llama import Llama
from llama_skip.measure import splits
from llama_skip.model.loaded import Trace
from llama_skip.score.runner import Logits, Runner
from llama_skip.skipset import Unit

RIDGE = 0.03  # penalty of the maps
N_FITTED = 16  # windows that they are fitted on at most
CHUNK = 4096  # tokens that are summed at a time

Stream = npt.NDArray[np.float32]


class HealingRunner(Runner):
    """A Runner with a linear map in each gap, from the full model's stream before it to that behind it.

    The maps are fitted in closed form when a gap is first met. That takes the full model's stream around all
    blocks for each token fitted on: n_tokens x (n_layer + 1) x n_embd x 4 bytes.
    """

    def __init__(
        self,
        llm: Llama,
        windows: Sequence[Sequence[int]],
        *,
        shortcuts: bool = True,
        halves: Sequence[Unit] = (),
        about: Identity,
        sizes: Sequence[int],
        folder: Path,
    ) -> None:
        """Take the streams.

        Args:
            llm, shortcuts, halves: as for a Runner.
            windows: of the text, of which splits.fitted_on() are fitted on.
            about: the model.
            sizes: bytes of each block.
            folder: for a temporary file.
        """
        super().__init__(llm, windows[0], shortcuts=shortcuts, halves=halves)
        if not self.has_states:
            raise ValueError("this architecture does not show its residual stream, which maps are fitted on")
        self.about = about
        self.sizes = sizes
        self.path = folder / "mask.gguf"
        self.maps: dict[range, Bypass] = {}
        self.errors: dict[range, float] = {}
        fitted_on = splits.fitted_on(windows, N_FITTED)
        n_ctx = len(windows[0])
        self.streams = np.empty((llm.n_layer() + 1, n_ctx * len(fitted_on), llm.n_embd()), np.float32)
        llm.set_mask(None)
        for i, window in enumerate(fitted_on):
            states, rows = llm.hidden_states(window), slice(i * n_ctx, (i + 1) * n_ctx)
            self.streams[:-1, rows], self.streams[-1, rows] = states.inputs, states.outputs[-1]

    def map(self, gap: range) -> Bypass | None:
        """Return what stands in a gap; None where its bytes allow no rank."""
        rank = bypass.largest_rank(self.llm.n_embd(), sum(self.sizes[il] for il in gap))
        if not rank:
            return None
        if gap not in self.maps:
            sums = Sums(self.llm.n_embd())
            x, t = self.streams[gap.start], self.streams[gap.stop]
            for i in range(0, len(x), CHUNK):
                sums.add(x[i : i + CHUNK], t[i : i + CHUNK])
            fit = sums.linear().fit(RIDGE, rank)
            self.maps[gap] = bypass.linear(gap, fit.u, fit.v, fit.b, EPS)
        return self.maps[gap]

    def error(self, gap: range) -> float:
        """Return which share of the stream behind a gap its map gets wrong, as the next norm sees it."""
        if gap not in self.errors:
            x, t = self.streams[gap.start], self.streams[gap.stop]
            part = self.map(gap)
            wrong = (x if part is None else part.apply(x)) - t
            self.errors[gap] = float(np.mean((wrong**2).sum(axis=1) / (t**2).sum(axis=1)))
        return self.errors[gap]

    def among(self, window: Sequence[int], out: Sequence[int], trace: Trace) -> Logits:
        """Return the logits without `out`, from the full model's trace() of the window on."""
        first = min(out) - 1
        return self._from(first if first >= 0 and trace.blocks else None, window, out, trace)

    def _first(self, out: Sequence[Unit], unit: Unit) -> int | None:
        """Return the block before the gap that a block falls into, so that the map is part of the graph."""
        if not isinstance(unit, int):
            return unit[0]
        gap = next(gap for gap in skipset.gaps(skipset.whole([*out, unit])) if unit in gap)
        return gap.start - 1 if gap.start > 0 else None

    def _set_mask(self, out: Sequence[Unit], *, resumed: bool = False, behind: Sequence[int] = ()) -> None:
        gaps = skipset.gaps(skipset.whole(out))
        if resumed and gaps and gaps[0].start == 0:
            del gaps[0]
        parts = [part for gap in gaps if (part := self.map(gap))]
        if not parts:
            self.llm.set_mask([*out, *behind])
            return
        content = {"model": asdict(self.about), "skip_layers": skipset.ranges_text([*out, *behind])}
        write_bypasses(self.path, content, parts)
        self.llm.set_mask(f"@{self.path}")
