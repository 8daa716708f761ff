"""Gemma 4's draft head reads the KV caches of the last two blocks of its target."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.matrix.arch_files import from_recipe, weights, write

from comparison.builds import Build
from comparison.libllama import Library, LlamaError

MTP = 1  # LLAMA_CONTEXT_TYPE_MTP
HEAD = {
    "token_embd": (128, 32),
    "output_norm": (32,),
    "nextn.pre_projection": (32, 128),
    "nextn.post_projection": (64, 32),
    "rope_freqs": (8,),
}
BLOCK = {
    "attn_norm": (32,),
    "attn_q": (64, 32),
    "attn_q_norm": (16,),
    "attn_output": (32, 64),
    "post_attention_norm": (32,),
    "ffn_norm": (32,),
    "ffn_gate": (96, 32),
    "ffn_up": (96, 32),
    "ffn_down": (32, 96),
    "post_ffw_norm": (32,),
    "layer_output_scale": (1,),
}


def head_of(lib: Library, target: Path, head: Path, layers: str, mask: str) -> str:
    """What is said about a head of a target without these blocks, empty where its context was made."""
    model = lib.model(target, {"skip.layers": layers} if layers else {})
    ctx = model.context(n_ctx=64)
    if mask:
        ctx.mask(mask)
    draft = lib.model(head)
    try:
        draft.context(n_ctx=64, ctx_type=MTP, ctx_other=ctx.p).close()
        return ""
    except LlamaError as err:
        return str(err)
    finally:
        draft.close()
        ctx.close()
        model.close()


@pytest.mark.parametrize(
    ("layers", "mask", "missing"),
    [("", "", None), ("3", "4", None), ("8", "", 8), ("6-7", "", 7), ("", "8", 8), ("3", "7", 7)],
)
def test_a_head_needs_the_blocks_whose_cache_it_reads(
    stock: Build, ours: Build, tmp_path: Path, layers: str, mask: str, missing: int | None
) -> None:
    model = from_recipe(stock, tmp_path, "gemma4")
    assert model.n_layer == 9
    target = write(tmp_path / "target.gguf", model.arch, model.metadata, model.tensors)
    shapes = HEAD | {f"blk.{il}.{name}": shape for il in range(2) for name, shape in BLOCK.items()}
    tensors = {f"{name}.weight": weights(name, shape) for name, shape in shapes.items()}
    model = from_recipe(stock, tmp_path, "gemma4-assistant")
    head = write(tmp_path / "head.gguf", model.arch, model.metadata, tensors)
    said = ours.worker.call(head_of, target, head, layers, mask)
    assert said == "" if missing is None else f"KV cache of block {missing} of its target" in said
