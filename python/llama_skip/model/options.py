"""What commands and measurements load a model with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CACHE_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "iq4_nl": 20,
    "bf16": 30,
}


DEFAULT_CACHE_TYPE = CACHE_TYPES["f16"]


FLASH = {"on": True, "off": False, "auto": None}


NO_RESULT = ("n_threads", "n_threads_batch", "verbose", "log", "progress")  # options that change no result
# what the commands load a model with where nothing else is given
DEFAULTS: dict[str, Any] = {
    "n_batch": 512,
    "n_ubatch": 512,
    "n_gpu_layers": -1,
    "type_k": DEFAULT_CACHE_TYPE,
    "type_v": DEFAULT_CACHE_TYPE,
    "flash_attn": None,
    "devices": None,
    "rpc_servers": None,
    "skip_untested": False,
    "verbose": False,
}


def cache_types(options: Mapping[str, Any]) -> dict[str, int]:
    """Return the types of cached keys and values in arguments of `Llama`, as numbers; F32 is 0."""
    given = {key: options.get(key) for key in ("type_k", "type_v")}
    return {key: DEFAULT_CACHE_TYPE if kind is None else kind for key, kind in given.items()}
