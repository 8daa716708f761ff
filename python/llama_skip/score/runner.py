"""Logits of a model with blocks left out, without computing again what lies before the first of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from llama_skip.llama.llama import Llama
from llama_skip.measure.perplexity import window_logits
from llama_skip.model.loaded import Trace
from llama_skip.skipset import HALVES, Unit, block_of

N_PROBE = 24  # tokens
CACHE_BYTES = 256 << 20  # of the full model's stream

Logits = npt.NDArray[np.float32]


class Runner:
    """Evaluates windows of a text under masks; logits are those that predict perplexity.window_targets().

    With shortcuts a model with a block left out starts behind that block, and one with half a block left out
    at it, from what enters it. They are used where a probe shows that every block can be started from with
    logits equal bit for bit.
    """

    def __init__(
        self, llm: Llama, sample: Sequence[int], *, shortcuts: bool = True, halves: Sequence[Unit] = ()
    ) -> None:
        """Look whether the shortcuts work.

        Args:
            llm: a model loaded with hidden_states=True and nothing left out.
            sample: tokens for the probe.
            shortcuts: False: do not use them.
            halves: the halves of blocks that without() will be asked for.

        Attributes:
            halves: those of them that the architecture allows alone.
        """
        self.llm = llm
        self.halves = [unit for unit in halves if _allows(llm, unit)]
        probe = sample[:N_PROBE]
        self.has_states = _gives_states(llm, probe)
        self.shortcuts = shortcuts and self.has_states and _resumes(llm, probe, [])
        self.starts_with_halves = self.shortcuts and all(
            _resumes(llm, probe, mask) for mask in _alternating(self.halves)
        )
        self._ends: dict[int, npt.NDArray[np.float32]] = {}  # what enters the last block of the full model
        self._room = CACHE_BYTES

    def reference(self, index: int, window: Sequence[int]) -> Logits:
        """Return the full model's logits of a window, which always goes with the same index."""
        last = self.llm.n_layer() - 1
        if not self.shortcuts:
            return self.straight(window, [])
        if index in self._ends:
            return self._resume(self._ends[index], list(range(last)))
        trace = self.trace(window, [])
        self.keep(index, trace.inputs[-1])
        return trace.logits

    def keep(self, index: int, end: npt.NDArray[np.float32]) -> None:
        """Remember what enters the full model's last block, [n_tokens, n_embd], where there is room."""
        if self.shortcuts and index not in self._ends and end.nbytes <= self._room:
            self._ends[index] = end.copy()
            self._room -= end.nbytes

    def trace(self, window: Sequence[int], out: Sequence[Unit], *, until: int | None = None) -> Trace:
        """Return the model without `out`; without shortcuts its logits alone.

        Args:
            window: the tokens.
            out: blocks and halves left out.
            until: the last block that without() will be asked for; the logits are of no use then.
        """
        if not self.shortcuts:
            return Trace([], np.empty((0, 0, 0), np.float32), self.straight(window, out))
        self._set_mask(out)
        if until is not None:
            behind = [il for il in range(until + 1, self.llm.n_layer()) if il not in out]
            with suppress(ValueError):  # these cannot all go
                self._set_mask(out, behind=behind[1:])
        try:
            trace = self.llm.trace(window, first=len(window) // 2 if until is None else len(window) - 1)
        except RuntimeError:  # without a half, a graph may name the stream in another way
            return Trace([], np.empty((0, 0, 0), np.float32), self.straight(window, out))
        return trace._replace(logits=trace.logits[:-1])

    def without(self, window: Sequence[int], out: Sequence[Unit], unit: Unit, trace: Trace) -> Logits:
        """Return the logits without `out` and `unit`.

        Args:
            window: the tokens.
            out: blocks and halves left out.
            unit: one more.
            trace: trace() of the same window and set.

        Raises:
            ValueError: the architecture does not allow this set.
        """
        whole = [*out, unit]
        starts = self.shortcuts if all(isinstance(other, int) for other in whole) else self.starts_with_halves
        if not (starts and trace.blocks) or unit == trace.blocks[-1]:
            return self.straight(window, whole)
        return self._from(self._first(out, unit), window, whole, trace)

    def straight(self, window: Sequence[int], out: Sequence[Unit]) -> Logits:
        """Return the logits without `out`, all else computed."""
        self._set_mask(out)
        return window_logits(self.llm, window)

    def _set_mask(self, out: Sequence[Unit], *, resumed: bool = False, behind: Sequence[int] = ()) -> None:
        """Leave out `out`.

        Args:
            out: blocks and halves.
            resumed: what comes first stands for what the stream has already.
            behind: blocks that go too, since nobody looks at what they do.
        """
        self.llm.set_mask([*out, *behind])

    def _first(self, out: Sequence[Unit], unit: Unit) -> int | None:
        """Return the block to start at, from what enters it without `out`; None: from the beginning."""
        return block_of(unit)

    def _from(self, first: int | None, window: Sequence[int], out: Sequence[Unit], trace: Trace) -> Logits:
        """Return the logits without `out`, from what enters block `first` on; None: from the beginning."""
        if first is None:
            return self.straight(window, out)
        self._set_mask(out)  # raises where this set is refused, whatever lies before
        try:
            return self._resume(trace.inputs[trace.blocks.index(first)], [*range(first), *out])
        except ValueError:  # the blocks before cannot all go
            return self.straight(window, out)

    def _resume(self, stream: npt.NDArray[np.float32], out: Sequence[Unit]) -> Logits:
        self._set_mask(out, resumed=True)
        return self.llm.resume(stream, first=len(stream) // 2)[:-1]


def _gives_states(llm: Llama, tokens: Sequence[int]) -> bool:
    try:
        llm.hidden_states(tokens)
    except RuntimeError:
        return False
    return True


def _resumes(llm: Llama, tokens: Sequence[int], out: Sequence[Unit]) -> bool:
    """Return whether each block of the model without `out` can be started from with the same logits."""
    try:
        llm.set_mask(out)
        trace = llm.trace(tokens)
        for i, block in enumerate(trace.blocks):
            llm.set_mask([*range(block), *out])
            if not np.array_equal(llm.resume(trace.inputs[i]), trace.logits):
                return False
    except (RuntimeError, ValueError):
        return False
    finally:
        llm.set_mask(None)
    return True


def _alternating(halves: Iterable[Unit]) -> list[list[Unit]]:
    """Return sets of one half of each block, by turns, that have all halves between them."""
    sets: list[list[Unit]] = [[], []]
    for unit in halves:
        assert not isinstance(unit, int)
        sets[(unit[0] + (unit[1] == HALVES[0])) % 2].append(unit)
    return [found for found in sets if found]


def _allows(llm: Llama, unit: Unit) -> bool:
    try:
        llm.set_mask([unit])
    except ValueError:
        return False
    finally:
        llm.set_mask(None)
    return True
