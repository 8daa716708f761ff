"""From a score to a plan: the prefix of the greedy path that a target asks for.

A path over blocks and halves is measured by what it goes by, bytes of weights, of the KV cache, or time: K
blocks of it are K / n_layer of what all take.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from llama_skip import skipset
from llama_skip.bypass.bypass import largest_rank, n_bytes_of_linear
from llama_skip.errors import MIB, ArgumentError
from llama_skip.files.identity import block_bytes, half_bytes
from llama_skip.files.store import StrPath
from llama_skip.llama.llama import Llama
from llama_skip.measure import speed as measure
from llama_skip.model.loaded import DeviceMemory
from llama_skip.plan.dry import dry_memory, place, runtime, total
from llama_skip.plan.file import Plan, write_plan
from llama_skip.plan.found import Found
from llama_skip.score.file import Score, share_of_blocks
from llama_skip.score.sizes import shares

N_PAIRS = 5  # timings of the full model, and as many of a prefix, in turn
N_TIMED = 16  # tokens
N_CTX = 64  # tokens, besides those that are timed
LONGER = "`llama-skip score MODEL --blocks N -o SCORE` goes on with a score, to N blocks"
EXACT = 1e-9  # of a share

BOUNDS: dict[str, tuple[Callable[[float], bool], str]] = {
    "blocks": (lambda value: value >= 1, "1 or more"),
    "fraction": (lambda value: 0 < value < 1, "over 0 and below 1"),
    "max_kld": (lambda value: 0 <= value < math.inf, "0 or more"),
    "max_ppl_ratio": (lambda value: 1 <= value < math.inf, "1 or more"),
    "mib": (lambda value: 0 < value < math.inf, "over 0"),
    "kv": (lambda value: 0 < value < math.inf, "over 0"),
    "speedup": (lambda value: 1 < value < math.inf, "over 1"),
    "share": (lambda value: 0 < value <= 1, "over 0 and up to 1"),
    "n_parallel": (lambda value: value >= 1, "1 or more"),
}


def check_target(**values: float | None) -> None:
    """Raise ArgumentError where an argument of a plan is out of range; None is not given."""
    for name, value in values.items():
        is_within, expected = BOUNDS[name]
        if value is not None and not is_within(value):
            raise ArgumentError(name, f"{value:g} is out of range, expected {expected}")


def plan_blocks(
    score: Score,
    *,
    blocks: int | None = None,
    fraction: float | None = None,
    max_kld: float | None = None,
    max_ppl_ratio: float | None = None,
) -> Plan:
    """Return the beginning of the greedy path that exactly one target asks for; it may leave out nothing.

    Args:
        score: what `llama-skip score` found.
        blocks: how many blocks to leave out; on a path with halves, what so many take on average.
        fraction: which share of the blocks, rounded down, at least one; on a path with halves, to its steps.
        max_kld: as many as the path allows for so much KL divergence, in nats per token.
        max_ppl_ratio: as many as the path allows for perplexity at most so many times the full model's.

    Raises:
        ValueError: no target or several, one out of range, or a path that is too short.
    """
    given = {"blocks": blocks, "fraction": fraction, "max_kld": max_kld, "max_ppl_ratio": max_ppl_ratio}
    target = {name: value for name, value in given.items() if value is not None}
    if len(target) != 1:
        raise ValueError(f"expected one of {', '.join(given)}, not {len(target)} of them")
    check_target(**target)
    if not score.path:
        raise ValueError("the score was stopped before its first step, the same `llama-skip score` goes on")
    if fraction is not None or blocks is not None:
        return prefix(score, n_steps(score, blocks=blocks, fraction=fraction), target)
    if max_kld is not None:
        return prefix(score, _longest([step.kld <= max_kld for step in score.path]), target)
    assert max_ppl_ratio is not None
    most = max_ppl_ratio * score.perplexity
    return prefix(score, _longest([step.perplexity <= most for step in score.path]), target)


def n_steps(score: Score, *, blocks: int | None = None, fraction: float | None = None) -> int:
    """Return how many steps of a path a number or share of the blocks is.

    Raises:
        ValueError: a path with halves that saves less than that.
    """
    n_layer = score.model.n_layer
    n_blocks = share_of_blocks(fraction, n_layer) if fraction is not None else blocks or 0
    if not score.halves:
        return n_blocks
    found = shares(score)
    if found[-1] < n_blocks / n_layer - EXACT:
        raise ValueError(
            f"the greedy path in the score leaves out {found[-1]:.1%}, {n_blocks / n_layer:.1%} are asked "
            f"for: {longer(score)}"
        )
    most = n_blocks / n_layer if fraction is None else fraction
    return max(_longest([share <= most + EXACT for share in found]), 1)


def longer(score: Score) -> str:
    """Return how a score is gone on with."""
    flags = f"--halves --per {score.settings['per']} " if score.halves else ""
    flags += "--heal " if score.heals else ""
    return LONGER.replace("--blocks", f"{flags}--blocks")


def n_steps_text(score: Score, n: int) -> str:
    """Return a number of steps of a path in words."""
    return f"{n} {'steps' if score.halves else 'blocks'}"


def prefix(score: Score, n: int, target: Mapping[str, Any], **parts: Any) -> Plan:
    """Return the plan that leaves out what goes in the first steps of the greedy path.

    Args:
        score: with the path.
        n: how many.
        target: what they were chosen for.
        parts: further fields of Plan.

    Raises:
        ValueError: the path has fewer.
    """
    if n > len(score.path):
        has = n_steps_text(score, len(score.path))
        raise ValueError(f"the greedy path in the score has {has}, {n} are asked for: {longer(score)}")
    found = Found("greedy", dict(target), score.metric, perplexity_full=score.perplexity, text=score.text)
    if "heal" in score.settings:  # what it measured is with maps in the gaps, which this plan has not yet
        layers = skipset.ranges_text(step.unit for step in score.path[:n])
        return Plan(score.model, layers, found=Found("greedy", dict(target), score.metric), **parts)
    if n == 0:
        found = replace(found, kld=0.0, perplexity=score.perplexity)
        return Plan(score.model, "", found=found, **parts)
    last = asdict(score.path[n - 1])
    del last["block"], last["half"]
    layers = skipset.ranges_text(step.unit for step in score.path[:n])
    return Plan(score.model, layers, found=replace(found, **last), **parts)


def _longest(within: list[bool]) -> int:
    """Return the length of the longest prefix whose own value is within the bound."""
    return max((k for k, is_within in enumerate(within, 1) if is_within), default=0)


def plan_memory(model_path: StrPath, score: Score, mib: float, **options: Any) -> Plan:
    """Return the shortest beginning of the greedy path that fits into memory, from dry runs.

    Args:
        model_path: the GGUF file.
        score: of this model.
        mib: MiB for weights, KV cache and compute buffers together, on all devices together; where no device
            is used, on the host.
        options: arguments of `Llama`, such as n_ctx, type_k, n_gpu_layers (default: all kept blocks),
            rpc_servers, or n_parallel for llama-server, which takes less than others.

    Returns:
        The plan; its `runtime` says what it rests on, and the MiB by device. It leaves out nothing where the
        full model fits. With the block that goes last put back, it would not fit.

    Raises:
        ValueError: even the whole path does not fit.
    """
    check_target(mib=mib)
    options = {"n_gpu_layers": -1, "flash_attn": None, "verbose": False, **options}

    def used(n: int) -> dict[str, DeviceMemory]:
        layers = prefix(score, n, {}).skip_layers
        return dry_memory(model_path, skip_layers=layers or None, **options)

    heals = "heal" in score.settings
    # one after the other: compute buffers can be a little larger with a block less
    tried, taken = [], 0.0
    for n in range(len(score.path) + 1):
        tried.append(used(n))
        taken = total(tried[-1]) + (bypass_mib(model_path, prefix(score, n, {}).skip_layers) if heals else 0)
        if taken <= mib:
            target = {"vram": mib, "place": place(tried[-1])}
            return prefix(score, n, target, runtime=runtime(options, tried[-1]))
    raise ValueError(
        f"{mib:g} MiB: the full model takes {total(tried[0]):.1f} MiB {place(tried[0])}, and "
        f"{taken:.1f} MiB without the {n_steps_text(score, n)} of the greedy path: "
        f"{longer(score)}; "
        "or take a smaller context (-c) or KV type (-ctk, -ctv), or fewer blocks on the device (-ngl)"
    )


def fits(model_path: StrPath, layers: str, mib: float, *, heals: bool = False, **options: Any) -> bool:
    """Return whether the model without `layers` fits as plan_memory() counts, with `heals` healed."""
    options = {"n_gpu_layers": -1, "flash_attn": None, "verbose": False, **options}
    used = total(dry_memory(model_path, skip_layers=layers or None, **options))
    return used + (bypass_mib(model_path, layers) if heals else 0) <= mib


def memory_of(model_path: StrPath, plan: StrPath, **options: Any) -> dict[str, dict[str, float]]:
    """Return what a load with a plan file takes by device, as plan_memory() counts and a plan says it."""
    options = {"n_gpu_layers": -1, "flash_attn": None, "verbose": False, **options}
    memory = dry_memory(model_path, skip_layers=f"@{os.path.abspath(plan)}", **options)
    return {name: used._asdict() for name, used in memory.items()}


def bypass_mib(model_path: StrPath, layers: str) -> float:
    """Return the MiB that linear maps in all gaps of a set take at most."""
    sizes: dict[skipset.Unit, int] = dict(enumerate(block_bytes(model_path)))
    sizes.update({half: n for half, n in half_bytes(model_path).items()})
    units = skipset.parse_layers(layers)
    gaps: list[Sequence[skipset.Unit]] = [*skipset.gaps(skipset.whole(units))]
    gone = set(skipset.whole(units))
    gaps += [[u] for u in units if not isinstance(u, int) and u[0] + 1 not in gone]  # behind a half
    with Llama(os.fspath(model_path), dry_run=True, verbose=False) as llm:
        n_embd = llm.n_embd()
    found = 0.0
    for gap in gaps:
        rank = largest_rank(n_embd, sum(sizes[il] for il in gap))
        found += n_bytes_of_linear(n_embd, rank)
    return found / MIB


def plan_kv(model_path: StrPath, score: Score, kv: float, **options: Any) -> Plan:
    """Return the shortest beginning of the greedy path whose KV cache is small enough, from dry runs.

    Args:
        model_path: the GGUF file.
        score: of this model.
        kv: MiB of the KV cache, on the host and all devices together.
        options: arguments of `Llama`, such as n_ctx, type_k and type_v.

    Returns:
        The plan; its `runtime` says what it rests on, and the MiB by device. It leaves out nothing where the
        full model's cache is small enough.

    Raises:
        ValueError: even that of the whole path is larger.
    """
    check_target(kv=kv)
    options = {"n_gpu_layers": -1, "flash_attn": None, "verbose": False, **options}
    sizes = []
    for n in range(len(score.path) + 1):
        memory = _all_memory(model_path, prefix(score, n, {}).skip_layers, options)
        sizes.append(sum(used.kv for used in memory.values()))
        if sizes[-1] <= kv:
            return prefix(score, n, {"kv": kv}, runtime=runtime(options, memory))
    raise ValueError(
        f"{kv:g} MiB: the KV cache of the full model takes {sizes[0]:.1f} MiB, and {sizes[-1]:.1f} MiB "
        f"without the {n_steps_text(score, n)} of the greedy path: {longer(score)}; "
        "or take a smaller context (-c) or KV type (-ctk, -ctv)"
    )


def kv_mib(model_path: StrPath, layers: str, **options: Any) -> float:
    """Return the MiB of the KV cache of the model without `layers`, as plan_kv() counts."""
    options = {"n_gpu_layers": -1, "flash_attn": None, "verbose": False, **options}
    return sum(used.kv for used in _all_memory(model_path, layers, options).values())


def _all_memory(model_path: StrPath, layers: str, options: Mapping[str, Any]) -> dict[str, DeviceMemory]:
    with Llama(os.fspath(model_path), skip_layers=layers or None, dry_run=True, **options) as llm:
        return llm.memory()


def plan_speed(
    model_path: StrPath, score: Score, speedup: float, *, n_timed: int = N_TIMED, **options: Any
) -> Plan:
    """Return the shortest beginning of the greedy path with which single tokens take so much less time.

    Full model and prefix are timed in turn, on one load with run-time masks; the medians are compared. Where
    some blocks are on the host, a load without blocks brings others to the device and gains more than that.

    Args:
        model_path: the GGUF file.
        score: of this model.
        speedup: how many times as fast, over 1.
        n_timed: tokens of each timing.
        options: arguments of `Llama`.

    Raises:
        ValueError: even the whole path is slower than that.
    """
    check_target(speedup=speedup)
    options = {"n_gpu_layers": -1, "flash_attn": None, "verbose": False, **options}
    ratios = {0: 1.0}
    with Llama(model_path, **{**options, "n_ctx": N_CTX + n_timed}) as llm:

        def is_fast(n: int) -> bool:
            if n not in ratios:
                layers = prefix(score, n, {}).skip_layers
                ratios[n] = measured_speedup(llm, layers, n_timed=n_timed)
            return ratios[n] >= speedup

        n_path = len(score.path)
        if n_path == 0 or not is_fast(n_path):
            raise ValueError(
                f"a speedup of {speedup:g}: leaving out all {n_steps_text(score, n_path)} of the greedy path "
                f"gives {ratios[n_path]:.2f}: {longer(score)}"
            )
        n = shortest(n_path, is_fast)
    plan = prefix(score, n, {"speedup": speedup})
    return replace(plan, found=replace(plan.found, speedup=ratios[n]))


def with_speedup(plan: Plan, model_path: StrPath, file: StrPath, **options: Any) -> Plan:
    """Return a plan with how many times as fast single tokens are under the plan in `file`, and keep it."""
    options = {"n_gpu_layers": -1, "flash_attn": None, "verbose": False, **options}
    with Llama(model_path, **{**options, "n_ctx": N_CTX + N_TIMED}) as llm:
        speedup = measured_speedup(llm, f"@{os.path.abspath(file)}")
    plan = replace(plan, found=replace(plan.found, speedup=speedup))
    write_plan(file, plan)
    return plan


def measured_speedup(llm: Llama, skip_layers: str, *, n_timed: int = N_TIMED) -> float:
    """Return how many times as fast single tokens are without blocks, from timings in turn."""

    def timing(layers: str | None) -> float:
        llm.reset()
        llm.set_mask(layers)
        return measure.single_tokens(llm, n_timed)[0]

    for layers in (None, skip_layers):
        timing(layers)  # not counted: the first builds its graph
    pairs = [(timing(None), timing(skip_layers)) for _ in range(N_PAIRS)]
    llm.reset()
    llm.set_mask(None)
    return statistics.median(less for _, less in pairs) / statistics.median(full for full, _ in pairs)


def shortest(n_path: int, is_enough: Callable[[int], bool]) -> int:
    """Return a number of steps that is enough while one less is not, by bisection; 0 if that is enough.

    All `n_path` have to be enough.
    """
    if is_enough(0):
        return 0
    low, high = 0, n_path
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
