"""What is true without our code: changed copies of a GGUF for the unpatched library, and logits of either."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from comparison.libllama import N_THREADS, Library, Override

# what writes to the residual stream: a block in which these are zero is exactly the identity
WRITERS = re.compile(
    r"blk\.\d+\.(attn_output|attn_out|ffn_down|ffn_down_exps|ffn_down_shexp|ffn_down_chexps|ssm_out"
    r"|time_mix_output|channel_mix_value|shortconv\.out_proj|post_attention_norm|post_ffw_norm)\.(weight|bias)"
)
# of those, what a half's output is; and the matrices of a half, in a block of the usual kind
HALF_WRITERS = {
    "attn": re.compile(r"blk\.\d+\.attn_output\..*"),
    "ffn": re.compile(r"blk\.\d+\.ffn_down\..*"),
}
HALF_MATRICES = {half: re.compile(rf"blk\.\d+\.{half}_(?!.*norm).*") for half in HALF_WRITERS}
ALIGNMENT = 32  # of the tensors of a GGUF, and of CPU and rpc buffers

TEXT = (
    "The first train left the harbour town before sunrise, and nobody on the platform knew where it was "
    "going. "
    "A man with a brass telescope asked the conductor, who shrugged and said that the rails would decide. "
    "By noon the sea had disappeared behind the hills and the passengers began to tell each other stories."
)


@dataclass(frozen=True)
class TensorInfo:
    name: str
    offset: int
    size: int
    type: GGMLQuantizationType
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.offset + self.size

    @property
    def block(self) -> int | None:
        match = re.match(r"blk\.(\d+)\.", self.name)
        return int(match[1]) if match else None

    @property
    def padded(self) -> int:
        return -(-self.size // ALIGNMENT) * ALIGNMENT


@cache
def tensors(path: Path) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(t.name, int(t.data_offset), int(t.n_bytes), t.tensor_type, tuple(map(int, t.shape)))
        for t in GGUFReader(path).tensors
    )


def of_blocks(path: Path, blocks: Iterable[int]) -> list[TensorInfo]:
    wanted = set(blocks)
    return [t for t in tensors(path) if t.block in wanted]


def left_out(path: Path, spec: str) -> list[TensorInfo]:
    """What a set of blocks and halves leaves out of a file."""
    out = expand(spec)

    def is_out(t: TensorInfo) -> bool:
        halves = (
            half
            for half, matrices in HALF_MATRICES.items()
            if len(t.shape) > 1 and matrices.fullmatch(t.name)
        )
        return t.block in out or any(t.block in expand(spec, half) for half in halves)

    return [t for t in tensors(path) if is_out(t)]


def changed_copy(path: Path, copy: Path, change: Callable[[TensorInfo, bytes], bytes | None]) -> Path:
    """Copy a GGUF; `change` returns the new bytes of a tensor, as many as before, or None."""
    shutil.copyfile(path, copy)
    with copy.open("r+b") as file:
        for t in tensors(path):
            file.seek(t.offset)
            new = change(t, file.read(t.size))
            if new is not None:
                assert len(new) == t.size
                file.seek(t.offset)
                file.write(new)
    return copy


def zeroed_copy(path: Path, copy: Path, out: Iterable[int] | str) -> Path:
    """Copy a GGUF with blocks made identities, or of a set also halves that add zeros to the stream.

    Zero bytes are zeros in every quantised type.
    """
    writers = [(set(expand(out) if isinstance(out, str) else out), WRITERS)]
    if isinstance(out, str):
        writers += [(set(expand(out, half)), pattern) for half, pattern in HALF_WRITERS.items()]

    def change(t: TensorInfo, data: bytes) -> bytes | None:
        gone = any(t.block in blocks and pattern.fullmatch(t.name) for blocks, pattern in writers)
        return bytes(t.size) if gone else None

    return changed_copy(path, copy, change)


def rewritten_copy(
    path: Path,
    copy: Path,
    change: Callable[[str, np.ndarray], dict[str, np.ndarray]],
    metadata: dict[str, int] | None = None,
    arch: str | None = None,
) -> Path:
    """Write a GGUF anew: `change` returns what stands in place of a tensor, by name; metadata is added.

    Bytes keep the tensor's quantised type, float32 arrays are float32 tensors. With `arch` the file and its
    keys are of that architecture.
    """
    reader = GGUFReader(path)
    old = str(reader.fields["general.architecture"].contents())
    writer = GGUFWriter(copy, arch or old)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            item_type = field.types[1] if len(field.types) > 1 else None
            name = re.sub(rf"^{re.escape(old)}\.", f"{arch or old}.", field.name)
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=item_type)
    for key, value in (metadata or {}).items():
        writer.add_uint32(key, value)
    for t in reader.tensors:
        for name, data in change(t.name, t.data).items():
            writer.add_tensor(name, data, raw_dtype=t.tensor_type if data.dtype == np.uint8 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return copy


def times_power_of_two(t: TensorInfo, data: bytes, factor: float) -> bytes:
    """Multiply a tensor by a power of two, exactly: its values, or the scales and minima of its blocks."""
    if t.type == GGMLQuantizationType.F32:
        values = np.frombuffer(data, np.float32)
        return (values * np.float32(factor)).tobytes()
    n_factors, block_bytes = {GGMLQuantizationType.Q4_1: (2, 20), GGMLQuantizationType.Q8_0: (1, 34)}[t.type]
    rows = np.frombuffer(data, np.uint8).reshape(-1, block_bytes).copy()
    old = np.ascontiguousarray(rows[:, : 2 * n_factors]).view(np.float16)
    new = old * np.float16(factor)
    assert np.array_equal(new.astype(np.float32), old.astype(np.float32) * np.float32(factor)), t.name
    rows[:, : 2 * n_factors] = new.view(np.uint8)
    return rows.tobytes()


def expand(spec: str, half: str | None = None) -> list[int]:
    """The blocks of a set such as 13-14,25 or 0-29+2, or those of which it names a half: 13-14:attn."""
    blocks: list[int] = []
    for item in re.split("[,;]", spec):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?:\+(\d+))?)?(?::(attn|ffn))?", item)
        assert match, spec
        first, last, step, of = match.groups()
        if of == half:
            blocks += range(int(first), int(last or first) + 1, int(step or 1))
    return sorted(set(blocks))


def skip(layers: str, scale: str = "") -> dict[str, Any]:
    return {"skip.layers": layers, **({"skip.scale": scale} if scale else {})}


# the functions below run in a Worker


def tokens_of(lib: Library, path: Path, text: str = TEXT) -> list[int]:
    model = lib.model(path, vocab_only=True)
    tokens = model.tokenize(text)
    model.close()
    return tokens


def logits(
    lib: Library,
    path: Path,
    tokens: Sequence[int],
    overrides: Override = (),
    *,
    flash: str = "off",
    n_single: int = 6,
    mask: tuple[str | None, str | None] | None = None,
    n_ctx: int = 512,
    n_threads: int = N_THREADS,
    **params: Any,
) -> np.ndarray:
    """Logits of every token: all but the last n_single in one batch, those one by one."""
    model = lib.model(path, overrides, **params)
    ctx = model.context(flash=flash, n_ctx=n_ctx, n_threads=n_threads, n_threads_batch=n_threads)
    if mask:
        ctx.mask(*mask)
    n = len(tokens) - n_single
    parts = [ctx.decode(tokens[:n])] + [ctx.decode([t]) for t in tokens[n:]]
    ctx.close()
    model.close()
    return np.concatenate(parts)


def greedy(
    lib: Library, path: Path, prompt: str, n: int, overrides: Override, flash: str = "off"
) -> list[int]:
    """The n tokens that follow a text when the most probable one is taken each time."""
    model = lib.model(path, overrides)
    ctx = model.context(flash=flash)
    found = [int(ctx.decode(model.tokenize(prompt))[-1].argmax())]
    while len(found) < n:
        found.append(int(ctx.decode(found[-1:])[-1].argmax()))
    ctx.close()
    model.close()
    return found
