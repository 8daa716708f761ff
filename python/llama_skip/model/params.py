"""From the arguments of Llama to the parameters of `_core`, checked as far as no model is needed."""

import math
import socket
from collections.abc import Mapping, Sequence

from llama_skip import _core
from llama_skip.errors import ModelLoadError
from llama_skip.model.processors import n_processors

MOST_THREADS = 512  # GGML_MAX_N_THREADS


def load_mode(use_mmap: bool, use_mlock: bool) -> str:
    """Return llama.cpp's `--load-mode` for llama-cpp-python's two flags."""
    return "+".join(name for name, on in (("mmap", use_mmap), ("mlock", use_mlock)) if on) or "none"


def add_overrides(
    params: _core.ModelParams, overrides: Mapping[str, bool | int | float | str] | None
) -> None:
    """Add metadata overrides.

    Raises:
        ValueError: a key or value that is too long for llama.cpp.
        TypeError: a value that is not a bool, int, float or str.
    """
    for key, value in (overrides or {}).items():
        if not isinstance(value, bool | int | float | str):
            kind = type(value).__name__
            raise TypeError(f"kv_overrides: {key} is a {kind}, expected bool, int, float or str")
        if key.endswith("_epsilon") and isinstance(value, float) and not 0 < value < math.inf:
            raise ValueError(f"kv_overrides: {key} is {value!r}, expected a number above 0")
        if "\0" in key or (isinstance(value, str) and "\0" in value):
            raise ValueError(f"kv_overrides: {key!r} has a NUL")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"kv_overrides: {key} is {value}, which does not fit into 64 bits")
        params.add_override(key, value)


def add_disk(params: _core.ModelParams, strict: bool, idle: float) -> None:
    """Add when the memory of disk blocks is handed back.

    Raises:
        ValueError: a time that is no finite number of seconds from 0 on.
    """
    if not 0 <= idle < math.inf:
        raise ValueError(f"disk_idle: {idle!r} is not a number of seconds from 0 on")
    if strict:
        params.add_override("skip.disk_strict", True)
    if idle:
        params.add_override("skip.disk_idle", float(idle))


def names(value: str | Sequence[str], argument: str) -> list[str]:
    """Return a list of names given as a list or as one text with commas.

    Raises:
        ValueError: an empty name.
    """
    items = value.split(",") if isinstance(value, str) else list(value)
    if not all(items) or any("\0" in item for item in items):
        raise ValueError(f"{argument}: empty name, or one with a NUL, in {value!r}")
    return items


def rpc_servers(value: str | Sequence[str]) -> list[str]:
    """Return the servers after a connection to each: llama.cpp ends the process where one cannot be reached.

    Raises:
        ValueError: a server that is not HOST:PORT.
        ModelLoadError: a server that cannot be reached within five seconds.
    """
    servers = names(value, "rpc_servers")
    for server in servers:
        host, _, port = server.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"rpc_servers: {server!r} is not HOST:PORT")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as err:
            raise ModelLoadError(f"rpc_servers: cannot connect to {server}: {err}") from err
    return servers


def thread_counts(n_threads: int | None, n_threads_batch: int | None) -> tuple[int, int]:
    """Return the threads for single tokens and for batches; by default half of the processors, and all.

    Raises:
        ValueError: a number below 0, or above what ggml takes.
    """
    for name, n in (("n_threads", n_threads), ("n_threads_batch", n_threads_batch)):
        if n is not None and not 0 <= n <= MOST_THREADS:
            raise ValueError(f"{name}: {n} is not within 0 and {MOST_THREADS}")
    n_cpu = n_processors()
    return n_threads or max(n_cpu // 2, 1), n_threads_batch or n_cpu


def assign(target: _core.ModelParams | _core.ContextParams, **fields: object) -> None:
    """Set fields; one that is None keeps llama.cpp's default.

    Raises:
        TypeError: a value of the wrong type, or a negative one where llama.cpp has none.
    """
    for name, value in fields.items():
        if value is None:
            continue
        try:
            setattr(target, name, value)
        except TypeError:
            kind = type(getattr(target, name)).__name__
            raise TypeError(f"{name}: {value!r} is not allowed, expected {kind}") from None


def check_sizes(**sizes: int) -> None:
    """Refuse sizes that llama.cpp would take for very large ones.

    Raises:
        ValueError: a size below 0, or below 1 for any but n_ctx.
    """
    for name, size in sizes.items():
        least = 0 if name == "n_ctx" else 1
        if size < least:
            raise ValueError(f"{name}: {size} is too small, the least is {least}")


def fit_context(context: _core.ContextParams, model: _core.Model) -> None:
    """Let 0 mean the length the model was trained with, and a batch be at most a context."""
    context.n_ctx = context.n_ctx or model.n_ctx_train
    context.n_batch = min(context.n_ctx, context.n_batch)
    context.n_ubatch = min(context.n_batch, context.n_ubatch)
    if context.embeddings and not model.is_recurrent:  # where each sequence has a state of its own
        context.n_seq_max = min(context.n_batch, _core.max_sequences())
