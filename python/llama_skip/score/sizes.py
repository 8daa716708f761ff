"""What leaving out blocks and halves of blocks saves: bytes of weights, KV bytes, or time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_skip.errors import MIB
from llama_skip.files.store import StrPath
from llama_skip.llama.llama import Llama
from llama_skip.score.file import Score
from llama_skip.skipset import HALVES, Half, Unit, block_of, whole

PER = ("weights", "kv", "time")  # what a path over halves can be cheapest by
N_PAIRS = 5  # timings of the full model, and as many without one half of all blocks, in turn
N_TIMED = 8  # tokens of each


@dataclass(frozen=True)
class Sizes:
    """What units save, in one measure.

    Attributes:
        blocks: each block of the file.
        halves: each half that may be left out alone; {} where blocks go whole.
    """

    blocks: Sequence[float]
    halves: Mapping[Unit, float] = field(default_factory=dict)

    def of(self, out: Iterable[Unit]) -> float:
        """Return what a set saves; the half of a block that is in it too is the block."""
        found = set(out)
        gone = set(whole(found))
        return sum(
            self.blocks[unit] if isinstance(unit, int) else self.halves[unit]
            for unit in found
            if isinstance(unit, int) or unit[0] not in gone
        )

    def gains(self, out: Sequence[Unit]) -> dict[Unit, float]:
        """Return what may go next, with what each saves beyond the set `out`; what saves nothing is missing.

        That is each block that is not out, and each half of a block of which nothing is out.
        """
        gone, halved = set(whole(out)), {block_of(unit): unit for unit in out if not isinstance(unit, int)}
        found: dict[Unit, float] = {
            il: size - (self.halves[halved[il]] if il in halved else 0)
            for il, size in enumerate(self.blocks)
            if il not in gone
        }
        begun = gone | halved.keys()
        found.update((half, size) for half, size in self.halves.items() if block_of(half) not in begun)
        return {unit: size for unit, size in found.items() if size > 0}


def weights(score: Score) -> Sizes:
    """Return the bytes of weights."""
    return Sizes(
        [block.weights_bytes for block in score.blocks],
        {half.unit: half.weights_bytes for half in score.halves},
    )


def chosen_by(score: Score) -> Sizes:
    """Return what a score's path goes by: each block 1; with halves what they save, a block 1 on average.

    Raises:
        ValueError: no block saves anything of that.
    """
    per = score.settings.get("per")
    if per is None:
        return Sizes([1.0] * len(score.blocks))
    if per == "weights":
        sizes = weights(score)
    elif per == "kv":
        sizes = Sizes(
            [block.kv_bytes_per_token for block in score.blocks],
            {half.unit: half.kv_bytes_per_token for half in score.halves},
        )
    else:
        sizes = _times(score)
    mean = sum(sizes.blocks) / len(sizes.blocks)
    if mean <= 0:
        raise ValueError(f"per: leaving blocks out saves no {per} here")
    return Sizes([size / mean for size in sizes.blocks], {u: size / mean for u, size in sizes.halves.items()})


def shares(score: Score) -> list[float]:
    """Return which share of what a path goes by is saved after each step: of all blocks, 0 to 1."""
    sizes, out = chosen_by(score), [step.unit for step in score.path]
    return [sizes.of(out[:n]) / len(sizes.blocks) for n in range(1, len(out) + 1)]


def _times(score: Score) -> Sizes:
    """Return the milliseconds that a token takes less; blocks are the sum of both halves."""
    of_mib: Mapping[str, float] = score.settings["ms_per_mib"]
    halves = {half.unit: of_mib.get(half.half, 0.0) * half.weights_bytes / MIB for half in score.halves}
    blocks = [sum(halves.get((il, half), 0.0) for half in HALVES) for il in range(len(score.blocks))]
    return Sizes(blocks, halves)


def kv_bytes(model_path: StrPath, settings: Mapping[str, Any], n_layer: int) -> list[float]:
    """Return the KV bytes per token that leaving out each block saves, from dry runs."""
    names = ("n_ctx", "type_k", "type_v", "flash_attn", "n_batch", "n_ubatch", "skip_untested")
    options = {name: settings[name] for name in names if name in settings}

    def kv(layers: list[int]) -> float:
        with Llama(model_path, skip_layers=layers, dry_run=True, verbose=False, **options) as llm:
            return sum(device.kv for device in llm.memory().values()) * MIB / llm.n_ctx()

    full, saved = kv([]), []
    for il in range(n_layer):
        try:
            saved.append(full - kv([il]))
        except (ValueError, RuntimeError):  # this block cannot go, which the search finds out too
            saved.append(0.0)
    return saved


def ms_per_mib(llm: Llama, window: Sequence[int], halves: Mapping[Unit, float]) -> dict[Half, float]:
    """Return the milliseconds that a single token takes less for each MiB of either half.

    Timed at the end of a window, the full model and that without this half of all blocks in turn; the
    difference of the medians.

    Args:
        llm: the full model.
        window: the tokens.
        halves: those that may be left out, with their bytes.

    Raises:
        ValueError: the architecture does not allow all of these.
    """
    last = window[-min(N_TIMED, len(window) // 2) :]
    found: dict[Half, float] = {}
    llm.set_mask(None)
    llm.reset()
    llm.eval(window[: -len(last)])

    def timing(out: Sequence[Unit]) -> float:
        llm.set_mask(out)
        begin = time.perf_counter()
        for token in last:
            llm.eval([token])
            llm.sample(temp=0.0)  # waits for a device, which eval() may leave at work
        elapsed = time.perf_counter() - begin
        llm.truncate(len(window) - len(last))
        return 1000 * elapsed / len(last)

    for half in HALVES:
        out = [unit for unit in halves if not isinstance(unit, int) and unit[1] == half]
        if out:
            pairs = [(timing([]), timing(out)) for _ in range(N_PAIRS + 1)][1:]  # the first builds graphs
            full, less = (statistics.median(times) for times in zip(*pairs, strict=True))
            found[half] = max(full - less, 0.0) / (sum(halves[unit] for unit in out) / MIB)
    llm.reset()
    llm.set_mask(None)
    return found
