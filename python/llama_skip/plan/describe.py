"""What a person, and llama.cpp's tools, are told of a plan."""

from __future__ import annotations

from llama_skip.errors import MIB
from llama_skip.plan.choose import longer, n_steps_text, prefix
from llama_skip.plan.file import Plan
from llama_skip.score.file import Score
from llama_skip.skipset import unit_text, whole


def talk(plan: Plan) -> list[str]:
    """Return what a person wants to know about a plan."""
    found, n_layer = plan.found, plan.model.n_layer
    lines = []
    if plan.skip_layers:
        full = f"instead of {found.perplexity_full:.3f} " if found.perplexity_full is not None else ""
        text = found.text or (found.heal.texts[0] if found.heal else None)
        lines += [
            f"{plan.model.name}, {n_layer} blocks, without {plan.skip_layers}: KL divergence "
            f"{found.kld:.4f}, perplexity {found.perplexity:.3f} {full}"
            f"({text.name if text else ''}), {(found.bytes or 0) / MIB:.1f} MiB of weights less"
        ]
    elif not {"vram", "kv"}.isdisjoint(found.target or {}) and not plan.disk_layers:
        lines += [f"{plan.model.name} fits as it is"]
    elif not plan.disk_layers:
        lines += [f"{plan.model.name}: no block of the greedy path costs as little as that"]
    if plan.runtime:
        for name, used in plan.runtime["memory"].items():
            lines.append(
                f"{name if name != 'CPU' else 'host'}: {sum(used.values()):.1f} MiB: weights "
                f"{used['weights']:.1f}, KV cache {used['kv']:.1f}, compute {used['compute']:.1f}"
            )
    if found.speedup is not None:
        lines.append(f"single tokens {found.speedup:.2f} times as fast, measured")
    return lines


def path_end(plan: Plan, found: Score) -> list[str]:
    """Return what to know where a bound allows no block, or where a longer path could allow more."""
    n_path = len(found.path)
    is_cost = not {"max_kld", "max_ppl_ratio"}.isdisjoint(plan.found.target or {})
    if is_cost and not plan.skip_layers:
        first = found.path[0]
        ratio = first.perplexity / found.perplexity
        return [
            f"the first is {'' if first.half else 'block '}{unit_text(first.unit)}: KL divergence "
            f"{first.kld:.4f}, perplexity {ratio:.3f} times"
        ]
    takes_all = plan.skip_layers == prefix(found, n_path, {}).skip_layers
    n_out = len(whole(step.unit for step in found.path))
    if not is_cost or n_out == found.model.n_layer - 1 or (found.complete and not takes_all):
        return []
    unfinished = "" if found.complete else ", and is not complete"
    return [
        f"the score ends after {n_steps_text(found, n_path)}{unfinished}; a longer one may allow more: "
        f"{longer(found)}"
    ]


def arguments(plan: Plan, path: str | None = None) -> list[str]:
    """Return a plan as arguments of llama.cpp's tools; no word of it needs quotes.

    Args:
        plan: the plan.
        path: its file, which a plan with a bypass needs.

    Raises:
        ValueError: a device's or file's name with a blank.
    """
    words = ["--skip-layers", f"@{path}" if plan.bypass else plan.skip_layers] if plan.skip_layers else []
    words += ["--skip-scale", plan.skip_scale] if plan.skip_scale and not plan.bypass else []
    words += ["--disk-layers", plan.disk_layers] if plan.disk_layers else []
    for flag, key in FLAGS.items():
        value = (plan.runtime or {}).get(key)
        if value is None:
            continue
        if key == "n_gpu_layers" and value < 0:
            value = "all"
        if isinstance(value, bool):
            value = "on" if value else "off"
        words += [flag, value if isinstance(value, str) else str(value)]
    words += ["-kvu"] if "-np" in words else []  # as the server does where it chooses the slots
    for word in words:
        if word.split() != [word]:
            raise ValueError(f"{word!r} cannot be an argument of $(llama-skip plan ...)")
    return words


FLAGS = {
    "-c": "n_ctx",
    "-b": "n_batch",
    "-ub": "n_ubatch",
    "-ctk": "type_k",
    "-ctv": "type_v",
    "-ngl": "n_gpu_layers",
    "-fa": "flash_attn",
    "-np": "n_parallel",
    "-dev": "devices",
    "--rpc": "rpc_servers",
}
