"""A model under a plan, and its residual stream between blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llama_skip import skipset
from llama_skip.llama.llama import Llama
from llama_skip.model.loaded import HiddenStates, Trace
from llama_skip.plan.file import Plan, write_plan
from llama_skip.progress import Progress
from llama_skip.skipset import Unit

Stream = npt.NDArray[np.float32]


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


class Masked:
    """A model under plans.

    Args:
        llm: the full model, loaded with hidden_states=True.
        folder: for temporary files.
    """

    def __init__(self, llm: Llama, folder: Path) -> None:
        self.llm = llm
        self.folder = folder

    def set(self, plan: Plan) -> None:
        """Leave out what a plan says, with its bypasses.

        Raises:
            ValueError: the model refuses it.
        """
        if not plan.bypass:
            self.llm.set_mask(plan.skip_layers or None, plan.skip_scale or None)
            return
        path = self.folder / "mask.gguf"
        write_plan(path, plan)
        self.llm.set_mask(f"@{path}")

    def set_until(self, last: int, plan: Plan | None = None, units: Sequence[Unit] = ()) -> None:
        """Leave out `units` with the bypasses of `plan`, and where that is allowed what follows `last`."""
        behind = range(last + 1, self.llm.n_layer())
        for out in ([*units, *behind], units):
            try:
                if plan is None:
                    self.llm.set_mask(out)
                else:
                    self.set(replace(plan, skip_layers=skipset.ranges_text(out)))
            except ValueError:
                if out is units:
                    raise
            else:
                return

    def streams(self, window: Sequence[int], *at: int) -> list[Stream]:
        """Return what enters blocks, float32 [n_tokens, n_embd] each; n_layer: what leaves the last block."""
        n_layer = self.llm.n_layer()
        found: Trace | HiddenStates
        if n_layer in at:
            found = states = self.llm.hidden_states(window)
            last = {n_layer: states.outputs[-1]}
        else:
            found, last = self.llm.trace(window, first=len(window) - 1), {}
        return [last[il] if il in last else found.inputs[found.blocks.index(il)] for il in at]


class FullStreams:
    """What enters some blocks of the full model, of each window of a text.

    It is kept in temporary files: 4 bytes x places x tokens x width.
    """

    def __init__(
        self, masked: Masked, windows: Sequence[Sequence[int]], places: Iterable[int], bar: Progress
    ) -> None:
        """Take nothing yet.

        Args:
            masked: the model.
            windows: of the text.
            places: blocks; n_layer: what leaves the last one.
            bar: is told of each window.
        """
        self.masked = masked
        self.windows = windows
        self.files = {il: masked.folder / f"{il}.streams" for il in places}
        self.bar = bar
        self.is_taken = False

    def at(self, il: int, i: int) -> Stream:
        """Return what enters block `il` in window `i`, float32 [n_tokens, n_embd], once it was taken."""
        n_embd = self.masked.llm.n_embd()
        n, before = len(self.windows[i]), sum(map(len, self.windows[:i]))
        size = n_embd * np.float32().itemsize
        return np.fromfile(self.files[il], np.float32, n * n_embd, offset=before * size).reshape(n, n_embd)

    def take(self) -> None:
        """Evaluate the windows, unless that is done. The mask is another one afterwards."""
        if self.is_taken:
            return
        self.masked.set_until(max(self.files))
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("wb")) for path in self.files.values()]
            for window in self.windows:
                for file, stream in zip(files, self.masked.streams(window, *self.files), strict=True):
                    file.write(stream.tobytes())
                self.bar.step()
        self.is_taken = True
