"""The tensors that an architecture has for given metadata, asked of the unpatched library.

llama_model_init_from_user() builds a model from metadata alone and hands every tensor it made to a
callback: the names and shapes of a fixture are upstream's own, whatever its number of blocks.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_bool, c_char_p, c_void_p
from pathlib import Path
from typing import Any

from comparison.libllama import Library, ModelParams, Tensor

SET_TENSOR = ctypes.CFUNCTYPE(None, POINTER(Tensor), c_void_p)


class GgufParams(ctypes.Structure):
    _fields_ = [("no_alloc", c_bool), ("ctx", c_void_p)]


def shapes(lib: Library, metadata: Path) -> dict[str, tuple[int, ...]]:
    """Shapes (numpy order) by name of what a GGUF without tensors describes, optional tensors too."""
    base = ctypes.CDLL(str(lib.folder / "libggml-base.so"))
    base.gguf_init_from_file.restype = c_void_p
    base.gguf_init_from_file.argtypes = [c_char_p, GgufParams]
    base.gguf_free.argtypes = [c_void_p]
    lib.c.llama_model_init_from_user.restype = c_void_p
    lib.c.llama_model_init_from_user.argtypes = [c_void_p, SET_TENSOR, c_void_p, ModelParams]
    found: dict[str, tuple[int, ...]] = {}

    def on_tensor(tensor: Any, _: Any) -> None:
        t = tensor.contents
        ne = list(t.ne)
        while len(ne) > 1 and ne[-1] == 1:
            ne.pop()
        found[t.name.decode()] = tuple(reversed(ne))

    context = base.gguf_init_from_file(str(metadata).encode(), GgufParams(True, None))
    params = lib.c.llama_model_default_params()
    params.n_gpu_layers = 0
    model = lib.c.llama_model_init_from_user(context, SET_TENSOR(on_tensor), None, params)
    base.gguf_free(context)
    if not model:
        raise lib.fail(f"no model from {metadata}")
    lib.c.llama_model_free(model)
    return found
