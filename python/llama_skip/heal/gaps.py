"""What gaps cost, healed, as closed-form fits tell it, and the sets of blocks that this proposes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from heapq import nsmallest
from itertools import pairwise
from math import inf

import numpy as np

from llama_skip import skipset

Blocks = tuple[int, ...]

LEAST = 1e-9  # of an error or divergence
N_NEAR = 8  # neighbours of a set that are worth a measurement


def costs_of_gaps(
    errors: Callable[[range], float],
    measured: Mapping[range, float],
) -> dict[range, float]:
    """Return about what each gap costs, healed, in nats per token.

    Of the gaps that begin at one block some are measured. Between two of these the cost grows as a power of
    the error of the map.

    Args:
        errors: the error of a gap's map.
        measured: KL divergence with the map in that gap alone.
    """
    found = {}
    for first in {gap.start for gap in measured}:
        points = sorted((gap for gap in measured if gap.start == first), key=len)
        for shorter, longer in pairwise(points):
            e, kld = (
                np.log([max(value(gap), LEAST) for gap in (shorter, longer)])
                for value in (errors, measured.__getitem__)
            )
            power = (kld[1] - kld[0]) / (e[1] - e[0]) if e[1] != e[0] else 0.0
            for n in range(len(shorter) + 1, len(longer)):
                gap = range(first, first + n)
                found[gap] = float(np.exp(kld[0] + power * (np.log(max(errors(gap), LEAST)) - e[0])))
    return {**found, **measured}


def cheapest(
    costs: Mapping[range, float], n_layer: int, n_blocks: int, n_gaps: int, n_sets: int
) -> list[Blocks]:
    """Return sets of exactly so many gaps, none next to another, of the least sums, cheapest first."""

    @lru_cache(None)
    def best(end: int, n: int, k: int) -> list[tuple[float, Blocks]]:
        """Of the blocks before `end`: n of them in k gaps."""
        if n == 0 and k == 0:
            return [(0.0, ())]
        if end <= 0 or n <= 0 or k <= 0:
            return []
        found = best(end - 1, n, k).copy()
        for size in range(1, min(n, end) + 1):
            gap = range(end - size, end)
            if gap in costs:
                before = best(gap.start - 1, n - size, k - 1)
                found += ((cost + costs[gap], (*blocks, *gap)) for cost, blocks in before)
        return nsmallest(n_sets, found)

    return [blocks for _, blocks in best(n_layer, n_blocks, n_gaps)]


def neighbours(blocks: Blocks, costs: Mapping[range, float]) -> list[Blocks]:
    """Return the sets with one block at an edge of a gap moved to another place, cheapest first."""
    out = set(blocks)
    edges = {il for gap in skipset.gaps(out) for il in (gap[0], gap[-1])}
    allowed = {gap.start for gap in costs}
    found = {tuple(sorted((out - {edge}) | {other})) for edge in edges for other in allowed - out}
    return sorted(found, key=lambda near: cost_of(near, costs))[:N_NEAR]


def cost_of(blocks: Iterable[int], costs: Mapping[range, float]) -> float:
    """Return the sum over gaps; infinite where one is not known."""
    return sum(costs.get(gap, inf) for gap in skipset.gaps(blocks))
