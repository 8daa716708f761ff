"""LoRA adapters name tensors of the file: those of kept blocks apply, those of blocks left out do nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from support.adapters import lora_file, names_of, rows

from comparison.builds import Build
from comparison.libllama import LlamaError
from comparison.oracle import expand, left_out, skip

OUT = "13-14,25"
# what these write meets the stream through OUTPUTS
INSIDE = ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")
OUTPUTS = ("attn_output", "ffn_down")


@pytest.mark.parametrize("spec", [OUT, "25,13-14:attn,3:ffn,14:ffn"])
@pytest.mark.parametrize("where", ["load", "mask"])
def test_lora_of_what_is_kept_and_left_out(
    stock: Build,
    ours: Build,
    smollm2: Path,
    tokens: list[int],
    tmp_path: Path,
    zeroed: Any,
    where: str,
    spec: str,
) -> None:
    gone = {t.name for t in left_out(smollm2, spec)}
    whole = lora_file(smollm2, tmp_path / "whole.gguf", names_of(range(30), (*INSIDE, *OUTPUTS)))
    # what an adapter adds to a zero output matrix is not zero: the zeroed file gets none of those
    outputs = [name for name in names_of(range(30), OUTPUTS) if name not in gone]
    same = names_of(range(30), INSIDE) + outputs
    for_zeroed = lora_file(smollm2, tmp_path / "zeroed.gguf", same)

    expected, _ = stock.worker.call(rows, zeroed(spec), tokens[:20], lora=for_zeroed)
    how: dict[str, Any] = {"overrides": skip(spec)} if where == "load" else {"mask": spec}
    found, _ = ours.worker.call(rows, smollm2, tokens[:20], lora=whole, **how)
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, ours.worker.call(rows, smollm2, tokens[:20], **how)[0])


def test_lora_of_left_out_blocks_alone_does_nothing(
    ours: Build, smollm2: Path, tokens: list[int], tmp_path: Path
) -> None:
    adapter = lora_file(smollm2, tmp_path / "lora.gguf", names_of(expand(OUT), (*INSIDE, *OUTPUTS)))
    expected, _ = ours.worker.call(rows, smollm2, tokens[:20], skip(OUT))
    found, _ = ours.worker.call(rows, smollm2, tokens[:20], skip(OUT), lora=adapter)
    assert np.array_equal(found, expected)


def test_a_lora_that_does_not_fit_kept_blocks_is_still_refused(
    ours: Build, smollm2: Path, tokens: list[int], tmp_path: Path
) -> None:
    good = GGUFReader(lora_file(smollm2, tmp_path / "good.gguf", names_of([12, 13], ["attn_q"]))).tensors
    for old, new, reason in [
        ("blk.12.attn_q", "blk.12.nothing", "does not exist in base model"),
        ("blk.12.attn_q", "blk.30.attn_q", "does not exist in base model"),
        ("blk.12.attn_q", "blk.12.attn_k", "has incorrect shape"),
    ]:
        writer = GGUFWriter(tmp_path / "bad.gguf", "llama")
        writer.add_string("general.type", "adapter")
        writer.add_string("adapter.type", "lora")
        for t in good:
            writer.add_tensor(t.name.replace(old, new), t.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(LlamaError, match=reason):
            ours.worker.call(rows, smollm2, tokens[:4], skip(OUT), lora=tmp_path / "bad.gguf")
