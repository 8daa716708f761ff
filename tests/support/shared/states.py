"""Shared by tests of several folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from comparison.libllama import STATE_ROADS, Context, Library, LlamaError
from comparison.oracle import skip

# name: set and scale at load, mask and its scale. Several have as many blocks, some the same blocks left out.
Contexts = dict[str, tuple[dict[str, str], tuple[str | None, str | None]]]
CONTEXTS: Contexts = {
    "none": ({}, (None, None)),
    "skip 13": (skip("13"), (None, None)),
    "skip 14": (skip("14"), (None, None)),
    "skip 13 scaled": (skip("13", "0.5"), (None, None)),
    "skip 13 scaled otherwise": (skip("13", "0.50000006"), (None, None)),
    "skip 13, mask 20": (skip("13"), ("20", None)),
    "skip 20, mask 13": (skip("20"), ("13", None)),
    "skip 13,20": (skip("13,20"), (None, None)),
    "mask 13": ({}, ("13", None)),
    "mask 13 scaled": ({}, ("13", "0.5")),
    "mask 14": ({}, ("14", None)),
    "skip 13:attn": (skip("13:attn"), (None, None)),
    "mask 13:attn": ({}, ("13:attn", None)),
    "mask 13:ffn": ({}, ("13:ffn", None)),
}


def open_context(lib: Library, path: Path, name: str, known: Contexts = CONTEXTS) -> Context:
    overrides, mask = known[name]
    ctx = lib.model(path, overrides).context(n_seq_max=2, n_ctx=256)
    ctx.mask(*mask)
    return ctx


def cross(lib: Library, path: Path, tokens: list[int], folder: Path, known: Contexts = CONTEXTS) -> list[str]:
    """Restore each context's states in each context; return what went wrong."""
    contexts = {name: open_context(lib, path, name, known) for name in known}
    states, after = {}, {}
    for name, ctx in contexts.items():
        ctx.decode(tokens[:3])
        states[name] = {road: ctx.save(road, folder / "state", tokens[:3]) for road in STATE_ROADS}
        after[name] = ctx.decode(tokens[3:4])
    wrong = []
    for name, ctx in contexts.items():
        for source, by_road in states.items():
            ctx.c.llama_memory_clear(ctx.memory, True)
            ctx.decode(tokens[:3])
            for road, data in by_road.items():
                lib.log.clear()
                restored = ctx.restore(road, folder / "state", data)
                if restored != (source == name):
                    wrong.append(
                        f"{road}: '{name}' {'took' if restored else 'refused'} a state of '{source}'"
                    )
                if not restored and "the state was saved with" not in "".join(lib.log):
                    wrong.append(f"{road}: '{name}' refused a state of '{source}' without the reason")
            # a refusal leaves the tokens that are there, and a restored state is those tokens
            try:
                same = np.array_equal(ctx.decode(tokens[3:4]), after[name])
            except LlamaError:
                same = False
            if not same:
                wrong.append(f"'{name}' cannot go on after the states of '{source}'")
    return wrong
