"""Scores and plans as GGUF metadata, written by gguf-py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType, GGUFWriter

Value = int | float | str | list[Any]


def add(writer: GGUFWriter, key: str, value: Value) -> None:
    """Add a value: u32, f32, str, or an array of i32, f32 or str."""
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        kinds = {int: GGUFValueType.INT32, float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING}
        writer.add_key_value(key, value, GGUFValueType.ARRAY, sub_type=kinds[type(value[0])])


def annotated_copy(path: Path, copy: Path, metadata: dict[str, Value]) -> Path:
    """Write a GGUF anew with `metadata` added, or in place of what it had."""
    reader = GGUFReader(path)
    writer = GGUFWriter(copy, str(reader.fields["general.architecture"].contents()))
    for field in reader.fields.values():
        known = (
            field.name.startswith("GGUF.") or field.name == "general.architecture" or field.name in metadata
        )
        if not known:
            item_type = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=item_type)
    for key, value in metadata.items():
        add(writer, key, value)
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return copy


def write_sidecar(path: Path, arch: str, metadata: dict[str, Value]) -> Path:
    """Write a GGUF without tensors."""
    writer = GGUFWriter(path, arch)
    for key, value in metadata.items():
        add(writer, key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
