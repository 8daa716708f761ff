"""What a load would take, from dry runs, and how a plan says what it rests on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from llama_skip.files.store import StrPath
from llama_skip.llama.llama import Llama
from llama_skip.model.loaded import DeviceMemory
from llama_skip.model.options import CACHE_TYPES, cache_types


def dry_memory(model_path: StrPath, **options: Any) -> dict[str, DeviceMemory]:
    """Return what a load would allocate by device, in MiB: on the devices it uses, else on the host."""
    with Llama(os.fspath(model_path), dry_run=True, **options) as llm:
        memory = llm.memory()
    devices = {name: used for name, used in memory.items() if name != "CPU" and sum(used) > 0}
    return devices or memory


def total(memory: Mapping[str, DeviceMemory]) -> float:
    """Return the MiB of all devices together."""
    return sum(map(sum, memory.values()))


def is_host(memory: Mapping[str, DeviceMemory]) -> bool:
    """Return whether dry_memory() found no device in use."""
    return "CPU" in memory


def place(memory: Mapping[str, DeviceMemory]) -> str:
    """Return where memory is, for messages."""
    return "on the host" if is_host(memory) else f"on {', '.join(memory)}"


def runtime(options: Mapping[str, Any], memory: Mapping[str, DeviceMemory]) -> dict[str, Any]:
    """Return what a plan for a given memory rests on: arguments in the words of the flags, and MiB."""
    names = {number: name for name, number in CACHE_TYPES.items()}
    found: dict[str, Any] = {"n_ctx": options.get("n_ctx", 512)}
    found |= {key: names[kind] for key, kind in cache_types(options).items()}
    found["n_gpu_layers"] = options["n_gpu_layers"]
    for key in ("n_batch", "n_ubatch", "n_parallel", "flash_attn", "devices", "rpc_servers"):
        if options.get(key) is not None:
            found[key] = options[key]
    return {**found, "memory": {name: used._asdict() for name, used in memory.items()}}
