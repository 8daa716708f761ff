"""What fits, from dry runs."""

from __future__ import annotations

import os
from typing import Any

from llama_skip.llama.llama import Llama
from llama_skip.skipset import whole


def fit_gpu_layers(model_path: str | os.PathLike[str], limit: float, **options: Any) -> int:
    """Return the largest n_gpu_layers with which no device holds more than `limit`, from dry runs.

    Args:
        model_path: the GGUF file.
        limit: MiB on one device: weights, KV cache and compute buffers together. The host has no limit.
        options: further arguments of `Llama`, such as n_ctx, skip_layers, devices or rpc_servers.

    Returns:
        0 to the number of kept blocks + 1; 0 where nothing fits, or where there is no device.

    Raises:
        ValueError, FileNotFoundError, llama_skip.ModelLoadError: as by `Llama`.
    """

    def on_devices(n_gpu_layers: int) -> list[float]:
        with Llama(model_path, n_gpu_layers=n_gpu_layers, dry_run=True, **options) as llm:
            return [sum(m) for name, m in llm.memory().items() if name != "CPU"]

    with Llama(model_path, n_gpu_layers=0, dry_run=True, **options) as llm:
        most = llm.n_layer() - len(whole(llm.skip_layers)) + 1
    if not on_devices(most):
        return 0
    low, high = 0, most  # `low` fits, where anything does
    while low < high:
        middle = (low + high + 1) // 2
        if all(used <= limit for used in on_devices(middle)):
            low = middle
        else:
            high = middle - 1
    return low
