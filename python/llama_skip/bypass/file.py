"""A set with the bypasses of its gaps as a GGUF file, as `--skip-layers @FILE` takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf

from llama_skip.bypass.bypass import Bypass, Tensor, named_tensors
from llama_skip.files.gguf import read_gguf
from llama_skip.files.store import Format, StrPath, json_text, parse_json, replacing

FORMAT = Format("llama-skip-plan", version=1)
KEY = "skip.plan_file"  # what the file would hold as JSON


def write_bypasses(path: StrPath, content: Mapping[str, Any], parts: Sequence[Bypass]) -> None:
    """Write a set and its bypasses; what the file held before stays where that fails.

    Args:
        path: the file.
        content: of the JSON beside "bypass": "model" with architecture, model_id and file_id, and
            "skip_layers" at least.
        parts: the bypasses.

    Raises:
        OSError: it cannot be written.
    """
    text = json_text(FORMAT, {**content, "bypass": [part.entry() for part in parts]})
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "plan.gguf"
        writer = gguf.GGUFWriter(copy, content["model"]["architecture"])
        writer.add_string(KEY, text)
        for name, tensor in named_tensors(parts).items():
            writer.add_tensor(name, tensor.data, raw_dtype=tensor.type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with replacing(path) as file:
            file.write(copy.read_bytes())


def read_bypasses(path: StrPath) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what the JSON in such a file says, and its tensors.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is none of these, or of a newer version.
    """
    found = read_gguf(path)
    text = found.value(KEY)
    if not isinstance(text, str):
        raise ValueError(f"{path}: not a plan file: it has no {KEY}")
    return parse_json(text, path, FORMAT), {t.name.decode(): Tensor(*t.data()) for t in found.tensors}
