"""One libllama.so through ctypes: the functions of llama.h and llama-skip.h that the tests use.

Two builds never meet in one process: Worker runs functions of the test files in a process of their own.
"""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from ctypes import (
    POINTER,
    c_bool,
    c_char,
    c_char_p,
    c_double,
    c_float,
    c_int8,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Any

import numpy as np

Override = dict[str, str | int | float | bool] | Sequence[tuple[str, str | int | float | bool]]

LOAD_MODES = {"auto": -1, "none": 0, "mmap": 1, "mlock": 2, "mmap+mlock": 3, "dio": 4}
FLASH = {"auto": -1, "off": 0, "on": 1}
N_THREADS = (
    1  # two spin against each other where the cores are shared; test_identity.py runs with two as well
)


class ModelParams(ctypes.Structure):
    _fields_ = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", POINTER(c_float)),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        *(
            (name, c_bool)
            for name in ["vocab_only", "check_tensors", "use_extra_bufts", "no_host", "no_alloc", "load_mtp"]
        ),
    ]


class ContextParams(ctypes.Structure):
    _fields_ = [
        *((n, c_uint32) for n in ["n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq", "n_outputs_max"]),
        ("n_outputs_max_per_seq", c_uint32),
        *(
            (n, c_int32)
            for n in ["n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type", "pooling_type"]
        ),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        *((n, c_float) for n in ["rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor"]),
        *((n, c_float) for n in ["yarn_beta_fast", "yarn_beta_slow"]),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        *(
            (n, c_bool)
            for n in ["embeddings", "offload_kqv", "no_perf", "op_offload", "swa_full", "kv_unified"]
        ),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


class OverrideValue(ctypes.Union):
    _fields_ = [("val_i64", c_int64), ("val_f64", c_double), ("val_bool", c_bool), ("val_str", c_char * 128)]


class KvOverride(ctypes.Structure):
    _anonymous_ = ("value",)
    _fields_ = [("tag", c_int32), ("key", c_char * 128), ("value", OverrideValue)]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("type", c_int32),
        ("buffer", c_void_p),
        ("ne", c_int64 * 4),
        ("nb", c_size_t * 4),
        ("op", c_int32),
        ("op_params", c_int32 * 16),
        ("flags", c_int32),
        ("src", c_void_p * 10),
        ("view_src", c_void_p),
        ("view_offs", c_size_t),
        ("data", c_void_p),
        ("name", c_char * 64),
    ]


LOG_CALLBACK = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)
EVAL_CALLBACK = ctypes.CFUNCTYPE(c_bool, POINTER(Tensor), c_bool, c_void_p)

PROGRESS_CALLBACK = ctypes.CFUNCTYPE(c_bool, c_float, c_void_p)

P, I32, SIZE = c_void_p, c_int32, c_size_t
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_log_set": (None, [LOG_CALLBACK, P]),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_load_from_file": (P, [c_char_p, ModelParams]),
    "llama_model_free": (None, [P]),
    "llama_model_size": (c_uint64, [P]),
    "llama_model_n_params": (c_uint64, [P]),
    "llama_model_n_layer": (I32, [P]),
    "llama_model_get_vocab": (P, [P]),
    "llama_vocab_n_tokens": (I32, [P]),
    "llama_tokenize": (I32, [P, c_char_p, I32, POINTER(I32), I32, c_bool, c_bool]),
    "llama_init_from_model": (P, [P, ContextParams]),
    "llama_free": (None, [P]),
    "llama_get_memory": (P, [P]),
    "llama_decode": (I32, [P, Batch]),
    "llama_get_logits_ith": (POINTER(c_float), [P, I32]),
    "llama_memory_clear": (None, [P, c_bool]),
    "llama_memory_seq_rm": (c_bool, [P, I32, I32, I32]),
    "llama_memory_seq_cp": (None, [P, I32, I32, I32, I32]),
    "llama_memory_seq_keep": (None, [P, I32]),
    "llama_memory_seq_add": (None, [P, I32, I32, I32, I32]),
    "llama_memory_seq_div": (None, [P, I32, I32, I32, ctypes.c_int]),
    "llama_memory_seq_pos_max": (I32, [P, I32]),
    "llama_state_get_size": (SIZE, [P]),
    "llama_state_get_data": (SIZE, [P, P, SIZE]),
    "llama_state_set_data": (SIZE, [P, P, SIZE]),
    "llama_state_save_file": (c_bool, [P, c_char_p, POINTER(I32), SIZE]),
    "llama_state_load_file": (c_bool, [P, c_char_p, POINTER(I32), SIZE, POINTER(SIZE)]),
    "llama_state_seq_get_size": (SIZE, [P, I32]),
    "llama_state_seq_get_data": (SIZE, [P, P, SIZE, I32]),
    "llama_state_seq_set_data": (SIZE, [P, P, SIZE, I32]),
    "llama_state_seq_save_file": (SIZE, [P, c_char_p, I32, POINTER(I32), SIZE]),
    "llama_state_seq_load_file": (SIZE, [P, c_char_p, I32, POINTER(I32), SIZE, POINTER(SIZE)]),
    "llama_state_seq_get_size_ext": (SIZE, [P, I32, c_uint32]),
    "llama_state_seq_get_data_ext": (SIZE, [P, P, SIZE, I32, c_uint32]),
    "llama_state_seq_set_data_ext": (SIZE, [P, P, SIZE, I32, c_uint32]),
    "llama_skip_error": (c_char_p, []),
    "llama_skip_version": (c_char_p, []),
    "llama_skip_upstream": (c_char_p, []),
    "llama_skip_check": (c_bool, [c_char_p] * 5),
    "llama_model_is_skipped": (c_bool, [P, I32]),
    "llama_model_n_skipped": (I32, [P]),
    "llama_model_skipped_size": (c_uint64, [P]),
    "llama_model_skip_layers": (c_char_p, [P]),
    "llama_model_skip_scale": (c_char_p, [P]),
    "llama_model_skip_bypass": (c_char_p, [P]),
    "llama_model_is_on_disk": (c_bool, [P, I32]),
    "llama_model_n_on_disk": (I32, [P]),
    "llama_model_disk_layers": (c_char_p, [P]),
    "llama_model_disk_scale": (c_char_p, [P]),
    "llama_skip_standby": (None, [P]),
    "llama_skip_disk_mapped": (c_uint64, [P]),
    "llama_skip_disk_resident": (c_uint64, [P]),
    "llama_skip_disk_nodes": (c_bool, [P, I32, POINTER(I32), POINTER(I32)]),
    "llama_skip_set_mask": (c_bool, [P, c_char_p, c_char_p]),
    "llama_skip_is_masked": (c_bool, [P, I32]),
    "llama_skip_mask_layers": (c_char_p, [P]),
    "llama_skip_state_tag": (c_char_p, [P]),
}


class LlamaError(Exception):
    """A call that the library refused, with its log."""


class Library:
    """A build's libllama.so; `log` holds what it logged."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.log: list[str] = []
        self.c = ctypes.CDLL(str(self.folder / "libllama.so"))
        for name, (restype, argtypes) in SIGNATURES.items():
            if not ("skip" in name or "disk" in name) or hasattr(self.c, name):
                function = getattr(self.c, name)
                function.restype, function.argtypes = restype, argtypes
        self._callback = LOG_CALLBACK(lambda level, text, _: self.log.append(text.decode("utf-8", "replace")))
        self.c.llama_log_set(self._callback, None)
        base = ctypes.CDLL(str(self.folder / "libggml-base.so"))
        self.tensor_get = base.ggml_backend_tensor_get
        self.tensor_get.restype, self.tensor_get.argtypes = None, [P, P, SIZE, SIZE]

    def add_rpc(self, endpoint: str) -> None:
        """Add the devices of an rpc server to the ones every later model sees."""
        rpc = ctypes.CDLL(str(self.folder / "libggml-rpc.so"))
        rpc.ggml_backend_rpc_add_server.restype = P
        rpc.ggml_backend_rpc_add_server.argtypes = [c_char_p]
        ggml = ctypes.CDLL(str(self.folder / "libggml.so"))
        ggml.ggml_backend_register.argtypes = [P]
        ggml.ggml_backend_register(rpc.ggml_backend_rpc_add_server(endpoint.encode()))

    def model(self, path: str | Path, overrides: Override = (), **params: Any) -> Model:
        return Model(self, path, overrides, **params)

    def fail(self, what: str) -> LlamaError:
        return LlamaError(what + "\n" + "".join(self.log[-40:]))


class Model:
    """A loaded model; keyword arguments are fields of llama_model_params, load_mode by name."""

    def __init__(self, lib: Library, path: str | Path, overrides: Override = (), **params: Any) -> None:
        self.lib, self.c = lib, lib.c
        p = lib.c.llama_model_default_params()
        params["load_mode"] = LOAD_MODES[params.get("load_mode", "auto")]
        if "tensor_split" in params:
            params["tensor_split"] = (c_float * 16)(*params["tensor_split"])  # llama_max_devices()
        if "progress_callback" in params:
            self._progress = PROGRESS_CALLBACK(params["progress_callback"])
            params["progress_callback"] = ctypes.cast(self._progress, P)
        for name, value in params.items():
            setattr(p, name, value)
        self.overrides = override_array(overrides)
        p.kv_overrides = ctypes.cast(self.overrides, P)
        self.p = lib.c.llama_model_load_from_file(str(path).encode(), p)
        if not self.p:
            raise lib.fail(f"{path} was not loaded")
        self.n_vocab: int = self.c.llama_vocab_n_tokens(self.c.llama_model_get_vocab(self.p))

    def tokenize(self, text: str) -> list[int]:
        tokens = (I32 * (len(text) + 8))()
        vocab = self.c.llama_model_get_vocab(self.p)
        n = self.c.llama_tokenize(vocab, text.encode(), len(text.encode()), tokens, len(tokens), True, False)
        return tokens[:n]

    def context(self, **params: Any) -> Context:
        return Context(self, **params)

    def close(self) -> None:
        self.c.llama_model_free(self.p)


class Context:
    """A context of a model; keyword arguments are fields of llama_context_params, flash by name."""

    def __init__(self, model: Model, *, flash: str = "off", tap: bool = False, **params: Any) -> None:
        self.model, self.lib, self.c = model, model.lib, model.c
        p = self.c.llama_context_default_params()
        defaults: dict[str, Any] = {"n_ctx": 512, "n_threads": N_THREADS, "n_threads_batch": N_THREADS}
        for name, value in {**defaults, **params, "flash_attn_type": FLASH[flash]}.items():
            setattr(p, name, value)
        self.streams: dict[str, np.ndarray] = {}
        self.nodes: list[tuple[str, int, tuple[int, ...]]] = []  # name, operation and shape, in order
        self._computed: dict[int, np.ndarray] = {}
        self._tap = EVAL_CALLBACK(self._on_tensor)
        if tap:
            p.cb_eval = ctypes.cast(self._tap, P)
        self.p = self.c.llama_init_from_model(model.p, p)
        if not self.p:
            raise self.lib.fail("no context")
        self.memory = self.c.llama_get_memory(self.p)

    def _on_tensor(self, tensor: Any, ask: bool, _: Any) -> bool:
        """Keep what each norm reads: `norm-N` is the residual stream at block N, `norm` the one behind."""
        if ask:
            return True
        t = tensor.contents
        name = t.name.decode()
        self.nodes.append((name, t.op, tuple(t.ne)))
        if name.partition("-")[0] == "norm":
            self.streams.setdefault(name, self._computed[t.src[0]])
        if t.type == 0 and t.ne[2] == t.ne[3] == 1 and t.data:
            data = np.empty((t.ne[1], t.ne[0]), np.float32)
            self.lib.tensor_get(ctypes.addressof(t), data.ctypes.data_as(P), 0, data.nbytes)
            self._computed[ctypes.addressof(t)] = data
        return True

    def decode(
        self, tokens: Sequence[int], *, pos: int | Iterable[int] | None = None, seq: int | Sequence[int] = 0
    ) -> np.ndarray:
        """Decode tokens, of sequence `seq` (or of several at once), and return the logits of every one."""
        n = len(tokens)
        seqs = [seq] if isinstance(seq, int) else list(seq)
        batch = Batch(n_tokens=n)
        batch.token = (I32 * n)(*tokens)
        if pos is not None:
            batch.pos = (I32 * n)(*(range(pos, pos + n) if isinstance(pos, int) else pos))
        ids = (I32 * len(seqs))(*seqs)
        batch.n_seq_id = (I32 * n)(*[len(seqs)] * n)
        batch.seq_id = (POINTER(I32) * n)(*[ctypes.cast(ids, POINTER(I32))] * n)
        batch.logits = (c_int8 * n)(*[1] * n)
        result = self.c.llama_decode(self.p, batch)
        if result != 0:
            raise self.lib.fail(f"llama_decode returned {result}")
        rows = [self.c.llama_get_logits_ith(self.p, i) for i in range(n)]
        return np.stack([np.ctypeslib.as_array(row, (self.model.n_vocab,)) for row in rows])

    def mask(self, layers: str | None, scale: str | None = None) -> None:
        encoded = [None if v is None else v.encode() for v in (layers, scale)]
        if not self.c.llama_skip_set_mask(self.p, *encoded):
            raise LlamaError(self.c.llama_skip_error().decode())

    def masked(self) -> list[int]:
        n = self.c.llama_model_n_layer(self.model.p)
        return [il for il in range(n) if self.c.llama_skip_is_masked(self.p, il)]

    def mask_layers(self) -> str:
        return str(self.c.llama_skip_mask_layers(self.p).decode())

    def save(self, road: str, path: Path, tokens: Sequence[int] = (), seq: int = 0) -> bytes:
        """Save by one of STATE_ROADS; return the saved bytes, empty where saving was refused."""
        ids = (I32 * len(tokens))(*tokens)
        if road.endswith("file"):
            if road == "file":
                done = self.c.llama_state_save_file(self.p, str(path).encode(), ids, len(tokens))
            else:
                done = self.c.llama_state_seq_save_file(self.p, str(path).encode(), seq, ids, len(tokens))
            return path.read_bytes() if done else b""
        args = {"data": (), "seq_data": (seq,), "seq_data_ext": (seq, 0)}[road]
        get = f"llama_state_{road.replace('data', 'get_data')}"
        size = getattr(self.c, get.replace("get_data", "get_size"))(self.p, *args)
        buffer = (c_uint8 * size)()
        n = getattr(self.c, get)(self.p, ctypes.addressof(buffer), size, *args)
        return bytes(buffer)[:n]

    def restore(self, road: str, path: Path, data: bytes, seq: int = 0) -> bool:
        """Restore what save() returned for the same road; False where it was refused."""
        if road.endswith("file"):
            path.write_bytes(data)
            ids, n = (I32 * 4096)(), SIZE()
            if road == "file":
                args = (str(path).encode(), ids, len(ids), ctypes.byref(n))
                return bool(self.c.llama_state_load_file(self.p, *args))
            args = (str(path).encode(), seq, ids, len(ids), ctypes.byref(n))
            return bool(self.c.llama_state_seq_load_file(self.p, *args))
        buffer = (c_uint8 * len(data)).from_buffer_copy(data)
        more = {"data": (), "seq_data": (seq,), "seq_data_ext": (seq, 0)}[road]
        set_data = getattr(self.c, f"llama_state_{road.replace('data', 'set_data')}")
        return bool(set_data(self.p, ctypes.addressof(buffer), len(data), *more))

    def close(self) -> None:
        self.c.llama_free(self.p)


STATE_ROADS = ("file", "data", "seq_file", "seq_data", "seq_data_ext")


def override_array(overrides: Override) -> ctypes.Array[KvOverride]:
    """Overrides as a program passes them: strings of up to 128 bytes, ended by an empty key."""
    items = list(overrides.items()) if isinstance(overrides, dict) else list(overrides)
    array = (KvOverride * (len(items) + 1))()
    for o, (key, value) in zip(array, items, strict=False):
        o.key = key.encode()
        if isinstance(value, bool):
            o.tag, o.val_bool = 2, value
        elif isinstance(value, int):
            o.tag, o.val_i64 = 0, value
        elif isinstance(value, float):
            o.tag, o.val_f64 = 1, value
        else:
            o.tag, o.val_str = 3, value.encode()
    return array


_library: Library | None = None


def _start(folder: str) -> None:
    global _library
    _library = Library(folder)


def _invoke(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    assert _library is not None
    _library.log.clear()
    return function(_library, *args, **kwargs)


class Worker:
    """Runs functions whose first argument is a Library, in a process that holds that library and no other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool: ProcessPoolExecutor | None = None

    def _new_pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, mp_context=context, initializer=_start, initargs=(str(self.folder),))

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call in the lasting process: the library may have served other tests before."""
        self._pool = self._pool or self._new_pool()
        try:
            return self._pool.submit(_invoke, function, args, kwargs).result()
        except BrokenProcessPool:
            self._pool = None
            raise

    def fresh(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call in a process of its own, started for this."""
        with self._new_pool() as pool:
            return pool.submit(_invoke, function, args, kwargs).result()

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown()
