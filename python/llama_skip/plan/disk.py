"""A plan for some memory that puts blocks on disk instead of leaving them out, where that is fast enough."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from llama_skip import skipset
from llama_skip.files.store import StrPath
from llama_skip.llama.llama import Llama
from llama_skip.measure import speed as measure
from llama_skip.model.loaded import DeviceMemory
from llama_skip.plan import choose as planning
from llama_skip.plan import dry
from llama_skip.plan.choose import N_PAIRS, N_TIMED
from llama_skip.plan.file import Plan
from llama_skip.plan.found import DiskCosts
from llama_skip.score.file import Score
from llama_skip.skipset import Unit

SHARE = 0.5  # of the speed with blocks left out


@dataclass(frozen=True)
class _Way:
    """Blocks left out and on disk, what a load takes, and tokens per second."""

    skip_layers: str
    disk_layers: str
    memory: dict[str, DeviceMemory]
    speed: float = 0.0


def plan_disk(
    model_path: StrPath,
    score: Score,
    left_out: Plan,
    *,
    share: float = SHARE,
    n_timed: int = N_TIMED,
    **options: Any,
) -> Plan:
    """Return the plan that leaves out the fewest blocks and is fast enough, with others on disk instead.

    A block on disk costs no quality, but it runs on the host. Those that are on disk are the first ones of
    the kept blocks, as many as it takes, so that the stream goes to the devices once. Speed is that of
    single tokens after a short prompt, of loads one after another, the median of several timings.

    Args:
        model_path: the GGUF file.
        score: of this model.
        left_out: what plan_memory() returned for it.
        share: the least speed, as a share of that of `left_out`, over 0 and up to 1.
        n_timed: tokens of each timing.
        options: arguments of `Llama` that `left_out` was made with.

    Returns:
        The plan; `left_out` again where no block on disk is fast enough. Its `found` has under "disk" what
        both cost, unless nothing has to be left out.

    Raises:
        ValueError: a share out of range, or no device is used.
    """
    planning.check_target(share=share)
    target, runtime = left_out.found.target or {}, left_out.runtime or {}
    mib = target["vram"]
    if "CPU" in runtime.get("memory", {}):
        raise ValueError("blocks on disk free memory of devices, and none is used")
    if not left_out.skip_layers:
        return left_out
    options = {"n_gpu_layers": -1, "flash_attn": None, "verbose": False, **options}
    n_out = next(
        k
        for k in range(len(score.path) + 1)
        if planning.prefix(score, k, {}).skip_layers == left_out.skip_layers
    )

    @cache
    def way(n_blocks: int) -> _Way | None:
        out = [step.unit for step in score.path[:n_blocks]]
        found = _on_disk(model_path, out, score.model.n_layer, mib, options)
        return found and replace(found, speed=_speed(model_path, found, n_timed, options))

    base = way(n_out)
    assert base is not None and not base.disk_layers

    def is_enough(n_blocks: int) -> bool:
        found = way(n_blocks)
        return found is not None and found.speed >= share * base.speed

    n_blocks = planning.shortest(n_out, is_enough)
    best = way(n_blocks)
    assert best is not None
    made = planning.prefix(
        score,
        n_blocks,
        target,
        runtime=dry.runtime(options, best.memory),
        disk_layers=best.disk_layers,
    )
    costs = DiskCosts(
        share=share,
        tokens_per_s=best.speed,
        left_out_instead=left_out.skip_layers,
        left_out_tokens_per_s=base.speed,
        left_out_kld=left_out.found.kld or 0.0,
        left_out_perplexity=left_out.found.perplexity or 0.0,
    )
    return replace(made, found=replace(made.found, disk=costs))


def _on_disk(
    model_path: StrPath, out: list[Unit], n_layer: int, mib: float, options: dict[str, Any]
) -> _Way | None:
    """Return the way with the fewest of the first blocks on disk that fits, None where none does."""
    skip_layers = skipset.ranges_text(out)
    kept = [il for il in range(n_layer) if il not in skipset.whole(out)]

    @cache
    def memory(n_blocks: int) -> dict[str, DeviceMemory]:
        return dry.dry_memory(
            model_path,
            **options,
            skip_layers=skip_layers or None,
            disk_layers=skipset.ranges_text(kept[:n_blocks]) or None,
        )

    def fits(n_blocks: int) -> bool:
        return dry.is_host(memory(n_blocks)) or dry.total(memory(n_blocks)) <= mib

    if not fits(len(kept)):
        return None
    n_blocks = planning.shortest(len(kept), fits)
    return _Way(skip_layers, skipset.ranges_text(kept[:n_blocks]), memory(n_blocks))


def _speed(model_path: StrPath, way: _Way, n_timed: int, options: dict[str, Any]) -> float:
    """Return tokens per second of single tokens."""
    loaded = {key: value for key, value in options.items() if key != "n_parallel"}
    with Llama(
        model_path, **loaded, skip_layers=way.skip_layers or None, disk_layers=way.disk_layers or None
    ) as llm:
        measure.single_tokens(llm, n_timed)  # not counted: graphs are built, pages brought in
        timings = []
        for _ in range(N_PAIRS):
            llm.reset()
            timings.append(measure.single_tokens(llm, n_timed)[0])
    return statistics.median(timings)


def talk(plan: Plan) -> Iterator[str]:
    """Yield what either costs: leaving blocks out, and having them on disk."""
    costs = plan.found.disk
    if costs is None:
        return
    ratio = costs.tokens_per_s / costs.left_out_tokens_per_s
    yield (
        f"without {costs.left_out_instead}, nothing on disk: KL divergence {costs.left_out_kld:.4f}, "
        f"perplexity {costs.left_out_perplexity:.3f}, {costs.left_out_tokens_per_s:.1f} tokens/s"
    )
    if plan.disk_layers:
        yield (
            f"with blocks {plan.disk_layers} on disk: KL divergence {plan.found.kld:.4f}, perplexity "
            f"{plan.found.perplexity:.3f}, {costs.tokens_per_s:.1f} tokens/s, {ratio:.2f} times as fast"
        )
    else:
        yield f"blocks on disk instead of fewer left out are less than {costs.share:g} times as fast"
