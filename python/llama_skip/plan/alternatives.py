"""What else fits into the memory that a plan is for, measured side by side with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama_skip.bypass.bypass import described
from llama_skip.errors import ModelLoadError
from llama_skip.files.identity import identify
from llama_skip.files.store import StrPath
from llama_skip.files.table import aligned
from llama_skip.llama.llama import Llama
from llama_skip.measure import candidates as quality
from llama_skip.measure import divergence
from llama_skip.measure import speed as measure
from llama_skip.measure.candidates import Candidate
from llama_skip.measure.own_writing import PROMPTS
from llama_skip.model.loaded import DeviceMemory
from llama_skip.model.options import CACHE_TYPES, DEFAULT_CACHE_TYPE, cache_types
from llama_skip.plan import choose as planning
from llama_skip.plan import dry
from llama_skip.plan.file import Plan
from llama_skip.progress import Progress

FAST_ENOUGH = 0.9  # of the fastest one's tokens per second
LEAST_CTX = 256
KV_TYPES = ("q8_0", "q4_0")
FULL_KV = (CACHE_TYPES["f16"], CACHE_TYPES["f32"], CACHE_TYPES["bf16"])


@dataclass(frozen=True)
class Alternative:
    """A way to fit into some memory, and what it costs.

    Attributes:
        name: what it does.
        file: the GGUF file's name.
        skip_layers: the blocks left out.
        n_ctx, type_k, type_v, n_gpu_layers: arguments; n_gpu_layers -1 is all.
        mib: what it takes of the memory; nothing where that is on devices and none of them is used.
        kld, kld_error: KL divergence from the full model with an F16 cache, nats per token.
        perplexity: on the same text.
        prompt_speed, generation_speed: tokens per second.
        same_context: whether it holds as many tokens as was asked for.
        recommended: see recommend().
    """

    name: str
    file: str
    skip_layers: str
    n_ctx: int
    type_k: str
    type_v: str
    n_gpu_layers: int
    mib: float
    kld: float = 0.0
    kld_error: float = 0.0
    perplexity: float = 0.0
    prompt_speed: float = 0.0
    generation_speed: float = 0.0
    same_context: bool = True
    recommended: bool = False


def check_files(model_path: StrPath, also: Sequence[StrPath]) -> None:
    """Load the vocabularies of other files, so that none turns out to be wrong after long work.

    Raises:
        ValueError: a file with another vocabulary than the model's.
        FileNotFoundError, llama_skip.ModelLoadError: no such file, or no model.
    """
    if not also:
        return
    with Llama(model_path, vocab_only=True, verbose=False) as full:
        tokens = full.tokenize("\n".join(PROMPTS).encode())
        for file in also:
            with Llama(file, vocab_only=True, verbose=False) as llm:
                quality.check_vocabulary(llm, full, tokens)


def ways(
    plan: Plan,
    model_path: StrPath,
    mib: float,
    also: Sequence[StrPath],
    *,
    file: StrPath | None = None,
    **options: Any,
) -> Iterator[Candidate]:
    """Yield what fits into the memory: the plan first, then the full model in other ways, then other files.

    Where all blocks of a file do not fit on the device, as many are there as do.

    Args:
        plan: of planning.plan_memory(), maybe healed; its blocks with nothing in their gaps are a way, too.
        model_path: the full model.
        mib: MiB that all devices have together.
        also: files of other quantizations.
        file: the plan's file, if it is healed.
        options: arguments of `Llama` that the plan was made with.
    """
    path, model = str(model_path), plan.model
    if plan.bypass and file is not None:
        yield Candidate(
            "leave blocks out, healed",
            path,
            model,
            plan.skip_layers,
            plan.skip_scale,
            plan=f"@{os.path.abspath(file)}",
            plan_hash="healed",
            bypass=described(plan.bypass),
            options=options,
        )
        plan = replace(plan, skip_scale="", bypass=[])
    yield Candidate("leave blocks out", path, model, plan.skip_layers, plan.skip_scale, options=options)
    on_host = most_on_devices(path, mib, **options)
    if on_host is not None:
        yield Candidate("fewer blocks on the device", path, model, options=on_host)
    if options.get("type_k") in (None, *FULL_KV) and options.get("type_v") in (None, *FULL_KV):
        for name in KV_TYPES:
            quantized = {"type_k": CACHE_TYPES[name], "type_v": CACHE_TYPES[name], "flash_attn": True}
            found = most_on_devices(path, mib, **{**options, **quantized})
            if found is not None and _is_more(found, on_host):
                yield Candidate(f"KV cache {name}", path, model, options=found)
                if found["n_gpu_layers"] == -1:
                    break
    smaller = _smaller_context(path, mib, options)
    if smaller is not None:
        yield Candidate(f"context of {smaller['n_ctx']}", path, model, options=smaller)
    for file in also:
        found = most_on_devices(file, mib, **options)
        if found is not None:
            yield Candidate(Path(file).name, str(file), identify(file), options=found)


def on_disk(plan: Plan, model_path: StrPath, **options: Any) -> Candidate:
    """Return the way that a plan with blocks on disk is."""
    name = f"blocks {plan.disk_layers} on disk"
    options = {**options, "disk_layers": plan.disk_layers}
    return Candidate(name, str(model_path), plan.model, plan.skip_layers, plan.skip_scale, options=options)


def most_on_devices(path: StrPath, mib: float, **options: Any) -> dict[str, Any] | None:
    """Return `options` with the largest n_gpu_layers that fits, -1 for all; None where nothing fits.

    None too where llama.cpp makes no context with these options, as with a KV type that the model's heads do
    not allow.

    Raises:
        FileNotFoundError, llama_skip.ModelLoadError: the file or a server is not there, or bad.
    """

    def fits(n_gpu_layers: int) -> bool:
        memory = dry.dry_memory(path, **{**options, "n_gpu_layers": n_gpu_layers})
        return dry.total(memory) <= mib

    wanted = options.get("n_gpu_layers", -1)
    try:
        if fits(wanted):
            return {**options, "n_gpu_layers": wanted}
        n_layer = identify(path).n_layer
        most = n_layer + 1 if wanted < 0 else min(wanted, n_layer + 1)
        if dry.is_host(dry.dry_memory(path, **options)):
            return None  # without a device there is nothing to put fewer blocks on
        left_out = planning.shortest(most, lambda n: n == most or fits(most - n))
    except ModelLoadError:
        raise
    except RuntimeError:
        return None
    return {**options, "n_gpu_layers": most - left_out}


def _is_more(found: Mapping[str, Any], other: Mapping[str, Any] | None) -> bool:
    """Return whether more blocks are on devices."""
    if other is None or found["n_gpu_layers"] == -1:
        return True
    return bool(found["n_gpu_layers"] > other["n_gpu_layers"])


def _smaller_context(path: str, mib: float, options: Mapping[str, Any]) -> dict[str, Any] | None:
    n_ctx = options["n_ctx"] // 2
    while n_ctx >= LEAST_CTX:
        smaller = {**options, "n_ctx": n_ctx}
        if dry.total(dry.dry_memory(path, **smaller)) <= mib:
            return smaller
        n_ctx //= 2
    return None


def compare(
    candidates: Sequence[Candidate], tokens: Sequence[int], *, n_ctx: int, bar: Progress, threads: int | None
) -> list[Alternative]:
    """Measure ways to fit into some memory, and recommend one.

    Divergence and perplexity are measured on the host, where the full model fits; speed with each one's own
    arguments. Of a smaller context or fewer blocks on the device only the speed changes.

    Args:
        candidates: of ways(), whose options are complete.
        tokens: the text.
        n_ctx: tokens in a window of it.
        bar: gets a step for each window and model, and measure.N_STEPS for each candidate.
        threads: for all of it.
    """
    plan, *_ = candidates
    reference = Candidate("full", plan.path, plan.model)
    models = [measured_as(candidate) for candidate in candidates]
    done: quality.Done = {}
    bar.say("perplexity and KL divergence")
    quality.score_candidates(
        reference,
        [reference, *models],
        tokens,
        n_ctx=n_ctx,
        done=done,
        on_window=bar.step,
        n_gpu_layers=0,
        devices=[],
        n_threads=threads,
        n_threads_batch=threads,
        flash_attn=None,
        verbose=False,
    )
    memories = [_memory(candidate) for candidate in candidates]
    found = []
    for candidate, model, memory in zip(candidates, models, memories, strict=True):
        bar.say(f"{candidate.name}: speed")
        ppl, kld = divergence.summary(done[model.key])
        loaded = {key: value for key, value in candidate.options.items() if key != "n_parallel"}
        with replace(candidate, options=loaded).load(n_threads=threads, n_threads_batch=threads) as llm:
            prompt_speed, generation_speed, _ = measure.speed(llm, tokens, bar)
        same_place = dry.is_host(memory) == dry.is_host(memories[0])
        runtime = dry.runtime(candidate.options, memory)
        found.append(
            Alternative(
                name=candidate.name,
                file=candidate.model.name,
                skip_layers=candidate.skip_layers,
                **{key: runtime[key] for key in ("n_ctx", "type_k", "type_v", "n_gpu_layers")},
                mib=dry.total(memory) if same_place else 0.0,
                kld=kld.mean,
                kld_error=kld.error,
                perplexity=ppl.value,
                prompt_speed=prompt_speed,
                generation_speed=generation_speed,
                same_context=candidate.options["n_ctx"] == plan.options["n_ctx"],
            )
        )
    return recommend(found)


def _memory(candidate: Candidate) -> dict[str, DeviceMemory]:
    options = {**candidate.options, **candidate.arguments}
    return dry.dry_memory(candidate.path, **options)


def measured_as(candidate: Candidate) -> Candidate:
    """Return what of a candidate changes its logits: the file, the blocks and the type of the cache."""
    kinds = cache_types(candidate.options)
    quantized = any(kind not in FULL_KV for kind in kinds.values())
    if all(kind == DEFAULT_CACHE_TYPE for kind in kinds.values()):
        return replace(candidate, options={})
    return replace(candidate, options={**kinds, "flash_attn": True} if quantized else kinds)


def recommend(alternatives: Sequence[Alternative]) -> list[Alternative]:
    """Return the alternatives, one of them marked.

    Of those that hold the context that was asked for, and write at least 90 % as many tokens per second as
    the fastest of them, it is the one with the least KL divergence: memory is saved to be fast, and what is a
    little faster is not worth another model. Of equal ones it is the faster.
    """
    usable = [a for a in alternatives if a.same_context]
    fastest = max(a.generation_speed for a in usable)
    fast = [a for a in usable if a.generation_speed >= FAST_ENOUGH * fastest]
    best = min(fast, key=lambda a: (a.kld, -a.generation_speed))
    return [replace(a, recommended=a is best) for a in alternatives]


def table(alternatives: Sequence[Alternative]) -> Iterator[str]:
    """Yield the lines of the table, and what is recommended."""
    head = ["", "left out", "-c", "-ctk", "-ngl", "MiB", "KL mean", "", "perplexity", "prompt t/s", "t/s"]
    cells = [
        [
            ("* " if a.recommended else "") + a.name,
            a.skip_layers or "none",
            str(a.n_ctx),
            a.type_k,
            "all" if a.n_gpu_layers < 0 else str(a.n_gpu_layers),
            f"{a.mib:.1f}",
            f"{a.kld:.5f}",
            f"+/- {a.kld_error:.5f}",
            f"{a.perplexity:.3f}",
            f"{a.prompt_speed:.0f}",
            f"{a.generation_speed:.1f}",
        ]
        for a in alternatives
    ]
    yield from aligned([head, *cells])
    plan, best = alternatives[0], next(a for a in alternatives if a.recommended)
    yield ""
    if best is plan:
        yield "recommended (*): leave these blocks out; nothing that is as fast diverges less"
    else:
        yield (
            f"not recommended: leaving blocks out. {best.name} (*) diverges by {best.kld:.4f} instead of "
            f"{plan.kld:.4f} at {best.generation_speed / plan.generation_speed:.0%} of the speed"
        )
