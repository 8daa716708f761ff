"""Logits of a model with blocks left out, without computing again what lies before the first of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from llama_skip.llama.llama import Llama
from llama_skip.measure.perplexity import window_logits
from llama_skip.model.loaded import Trace

N_PROBE = 24  # tokens
CACHE_BYTES = 256 << 20  # of the full model's stream

Logits = npt.NDArray[np.float32]


class Runner:
    """Evaluates windows of a text under masks; logits are those that predict perplexity.window_targets().

    With shortcuts a model with a block left out starts behind that block, from what enters it. They are used
    where a probe shows that every block can be started from with logits equal bit for bit.
    """

    def __init__(self, llm: Llama, sample: Sequence[int], *, shortcuts: bool = True) -> None:
        """Look whether the shortcuts work.

        Args:
            llm: a model loaded with hidden_states=True and nothing left out.
            sample: tokens for the probe.
            shortcuts: False: do not use them.
        """
        self.llm = llm
        self.has_states = _gives_states(llm, sample[:N_PROBE])
        self.shortcuts = shortcuts and self.has_states and _resumes(llm, sample[:N_PROBE])
        self._ends: dict[int, npt.NDArray[np.float32]] = {}  # what enters the last block of the full model
        self._room = CACHE_BYTES

    def reference(self, index: int, window: Sequence[int]) -> Logits:
        """Return the full model's logits of a window, which always goes with the same index."""
        last = self.llm.n_layer() - 1
        if not self.shortcuts:
            return self.straight(window, [])
        if index in self._ends:
            return self._resume(self._ends[index], range(last))
        trace = self.trace(window, [])
        self.keep(index, trace.inputs[-1])
        return trace.logits

    def keep(self, index: int, end: npt.NDArray[np.float32]) -> None:
        """Remember what enters the full model's last block, [n_tokens, n_embd], where there is room."""
        if self.shortcuts and index not in self._ends and end.nbytes <= self._room:
            self._ends[index] = end.copy()
            self._room -= end.nbytes

    def trace(self, window: Sequence[int], out: Sequence[int], *, logits_only: bool = False) -> Trace:
        """Return the model without the blocks `out`; without shortcuts its logits alone."""
        if logits_only or not self.shortcuts:
            return Trace([], np.empty((0, 0, 0), np.float32), self.straight(window, out))
        self._set_mask(out)
        trace = self.llm.trace(window, first=len(window) // 2)
        return trace._replace(logits=trace.logits[:-1])

    def without(self, window: Sequence[int], out: Sequence[int], block: int, trace: Trace) -> Logits:
        """Return the logits without `out` and `block`.

        Args:
            window: the tokens.
            out: blocks left out.
            block: one more.
            trace: trace() of the same window and blocks.

        Raises:
            ValueError: the architecture does not allow this set.
        """
        if not self.shortcuts or block == trace.blocks[-1]:
            return self.straight(window, [*out, block])
        self._set_mask([*out, block])  # raises where this set is refused, whatever lies before
        try:
            return self._resume(self._start(out, block, trace), {*out, *range(block + 1)})
        except ValueError:  # the blocks before cannot all go
            return self.straight(window, [*out, block])

    def straight(self, window: Sequence[int], out: Sequence[int]) -> Logits:
        """Return the logits without the blocks `out`, all of them computed."""
        self._set_mask(out)
        return window_logits(self.llm, window)

    def prepare(
        self, windows: Sequence[Sequence[int]], out: Sequence[int], candidates: Iterable[int]
    ) -> None:
        """Get ready for without() of these blocks and candidates."""

    def scale(self, out: Iterable[int]) -> str:
        """Return what the gaps are scaled by, as for `--skip-scale`."""
        return ""

    def restore(self, scale: str, out: Sequence[int]) -> None:
        """Go on with gaps of `out` that are scaled by what scale() returned."""

    def _set_mask(self, out: Iterable[int]) -> None:
        self.llm.set_mask(list(out))

    def _start(self, out: Sequence[int], block: int, trace: Trace) -> npt.NDArray[np.float32]:
        """Return the stream that enters the block behind `block` when that is left out too."""
        stream: npt.NDArray[np.float32] = trace.inputs[trace.blocks.index(block)]
        return stream

    def _resume(self, stream: npt.NDArray[np.float32], out: Iterable[int]) -> Logits:
        self._set_mask(sorted(out))
        return self._logits(stream)

    def _logits(self, stream: npt.NDArray[np.float32]) -> Logits:
        return self.llm.resume(stream, first=len(stream) // 2)[:-1]


def _gives_states(llm: Llama, tokens: Sequence[int]) -> bool:
    try:
        llm.hidden_states(tokens)
    except RuntimeError:
        return False
    return True


def _resumes(llm: Llama, tokens: Sequence[int]) -> bool:
    """Return whether each block can be started from, alone and as one of a set, with the same logits."""
    llm.set_mask(None)
    trace = llm.trace(tokens)
    try:
        for i, block in enumerate(trace.blocks):
            llm.set_mask(range(block))
            if not np.array_equal(llm.resume(trace.inputs[i]), trace.logits):
                return False
    except (RuntimeError, ValueError):
        return False
    finally:
        llm.set_mask(None)
    return True
