"""Shared by tests of several folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from comparison.libllama import Library, Override
from comparison.oracle import logits, rewritten_copy

N_CTX = 512


def on_devices(
    lib: Library, endpoints: list[str], path: Path, tokens: list[int], overrides: Override, **params: Any
) -> tuple[np.ndarray, str]:
    for endpoint in endpoints:
        lib.add_rpc(endpoint)
    return logits(lib, path, tokens, overrides, n_single=3, n_ctx=N_CTX, **params), "".join(lib.log)


def with_experts(path: Path, copy: Path) -> Path:
    """SmolLM2 as a mixture of two experts, both of them its feed-forward network."""

    def change(name: str, data: np.ndarray) -> dict[str, np.ndarray]:
        head, _, tail = name.rpartition(".ffn_")
        part = tail.removesuffix(".weight")
        if part not in ("gate", "up", "down"):
            return {name: data}
        router = {f"{head}.ffn_gate_inp.weight": np.zeros((2, 576), np.float32)} if part == "gate" else {}
        return {f"{head}.ffn_{part}_exps.weight": np.stack([data, data]), **router}

    return rewritten_copy(path, copy, change, {"llama.expert_count": 2, "llama.expert_used_count": 2})


SPLIT_ROW, SPLIT_TENSOR = 2, 3  # of enum llama_split_mode
