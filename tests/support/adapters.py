"""LoRA adapters and control vectors through libllama; the functions on a Library run in a Worker."""

from __future__ import annotations

from collections.abc import Iterable
from ctypes import POINTER, c_char_p, c_float, c_int32, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from comparison.libllama import Context, Library, Override
from comparison.oracle import tensors

# upstream's functions that no other test calls
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_adapter_lora_init": (c_void_p, [c_void_p, c_char_p]),
    "llama_set_adapters_lora": (c_int32, [c_void_p, POINTER(c_void_p), c_size_t, POINTER(c_float)]),
    "llama_set_adapter_cvec": (
        c_int32,
        [c_void_p, POINTER(c_float), c_size_t, c_int32, c_int32, c_int32],
    ),
}


def declare(lib: Library) -> None:
    for name, (restype, argtypes) in SIGNATURES.items():
        function = getattr(lib.c, name)
        function.restype, function.argtypes = restype, argtypes


def lora_file(model: Path, path: Path, names: Iterable[str], rank: int = 2) -> Path:
    """An adapter for the tensors `names`; what it does to one depends on nothing but the tensor's name."""
    shapes = {t.name: t.shape for t in tensors(model)}
    writer = GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    for name in names:
        n_in, n_out = shapes[name]
        random = np.random.default_rng([ord(c) for c in name])
        writer.add_tensor(f"{name}.lora_a", random.normal(0, 0.1, (rank, n_in)).astype(np.float32))
        writer.add_tensor(f"{name}.lora_b", random.normal(0, 0.1, (n_out, rank)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def names_of(blocks: Iterable[int], parts: Iterable[str]) -> list[str]:
    return [f"blk.{il}.{part}.weight" for il in blocks for part in parts]


def rows(
    lib: Library,
    path: Path,
    tokens: list[int],
    overrides: Override = (),
    *,
    lora: Path | None = None,
    cvec: tuple[np.ndarray, int, int] | None = None,
    mask: str | None = None,
    tap: bool = False,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits of every token, the last three decoded one by one, and the residual streams where tapped."""
    declare(lib)
    model = lib.model(path, overrides)
    adapter = None
    if lora:
        adapter = lib.c.llama_adapter_lora_init(model.p, str(lora).encode())
        if not adapter:
            raise lib.fail("the adapter was not loaded")
    ctx = model.context(tap=tap)
    if adapter:
        assert lib.c.llama_set_adapters_lora(ctx.p, (c_void_p * 1)(adapter), 1, (c_float * 1)(0.75)) == 0
    if mask:
        ctx.mask(mask)
    if cvec:
        set_cvec(ctx, *cvec)
    n = len(tokens) if tap else len(tokens) - 3
    found = [ctx.decode(tokens[:n])] + [ctx.decode([t]) for t in tokens[n:]]
    ctx.close()
    model.close()
    return np.concatenate(found), ctx.streams


def set_cvec(ctx: Context, directions: np.ndarray, first: int, last: int) -> None:
    """Apply `directions`, of which row 0 is block 1's, from block `first` to `last`."""
    data = np.ascontiguousarray(directions, np.float32)
    pointer = data.ctypes.data_as(POINTER(c_float))
    if ctx.c.llama_set_adapter_cvec(ctx.p, pointer, data.size, data.shape[1], first, last) != 0:
        raise ctx.lib.fail("the control vector was refused")
