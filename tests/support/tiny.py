"""Small models of random weights that speak SmolLM2's vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFWriter

from comparison.oracle import WRITERS

N_EMBD, N_FF, N_HEAD, N_KV, HEAD, N_EXPERT = 64, 128, 4, 2, 16, 4


def blocks(n: int, *, post_norm: str) -> dict[str, tuple[int, ...]]:
    """Tensors of dense blocks with norms of queries and keys, in the order of numpy: rows first."""
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (N_EMBD,),
        "attn_q": (N_HEAD * HEAD, N_EMBD),
        "attn_k": (N_KV * HEAD, N_EMBD),
        "attn_v": (N_KV * HEAD, N_EMBD),
        "attn_output": (N_EMBD, N_HEAD * HEAD),
        "attn_q_norm": (HEAD,),
        "attn_k_norm": (HEAD,),
        post_norm: (N_EMBD,),
        "ffn_gate": (N_FF, N_EMBD),
        "ffn_up": (N_FF, N_EMBD),
        "ffn_down": (N_EMBD, N_FF),
    }
    return {f"blk.{il}.{name}.weight": shape for il in range(n) for name, shape in shapes.items()}


def random_model(
    path: Path,
    vocab: Path,
    arch: str,
    n_blocks: int,
    shapes: dict[str, tuple[int, ...]],
    metadata: dict[str, int | list[str]],
    change: Callable[[str, np.ndarray], np.ndarray] = lambda name, data: data,
) -> Path:
    """Write `shapes` filled with random numbers, norms around one, each as `change` returns it.

    The vocabulary is the one of the file `vocab`.
    """
    reader = GGUFReader(vocab)
    writer = GGUFWriter(path, arch)
    for field in reader.fields.values():
        if field.name.startswith("tokenizer."):
            item_type = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=item_type)
    writer.add_context_length(2048)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(n_blocks)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_KV)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(f"{arch}.{key}", value)
        else:
            writer.add_uint32(f"{arch}.{key}", value)
    n_vocab = len(reader.fields["tokenizer.ggml.tokens"].data)
    random = np.random.default_rng(11)
    whole = {"token_embd.weight": (n_vocab, N_EMBD), "output_norm.weight": (N_EMBD,), **shapes}
    for name, shape in whole.items():
        data = random.normal(0, 0.3, shape)
        data = change(name, 1 + data if len(shape) == 1 else data)
        writer.add_tensor(name, data.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def small_vocab(path: Path) -> Path:
    """A file of nothing but a vocabulary of 64 tokens."""
    writer = GGUFWriter(path, "qwen3")
    writer.add_tokenizer_model("test")
    writer.add_token_list([f"tok_{i}" for i in range(64)])
    writer.add_token_scores([0.0] * 64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sliding_window(path: Path, vocab: Path) -> Path:
    """Gemma 3 with four blocks, of which all see the last 16 tokens only."""
    shapes = blocks(4, post_norm="ffn_norm")
    for il in range(4):
        shapes |= {
            f"blk.{il}.post_attention_norm.weight": (N_EMBD,),
            f"blk.{il}.post_ffw_norm.weight": (N_EMBD,),
        }
    return random_model(path, vocab, "gemma3", 4, shapes, {"attention.sliding_window": 16})


def mamba(path: Path, vocab: Path) -> Path:
    """Mamba with four blocks: a state in place of a cache."""
    n_inner, n_conv, n_state, n_dt = 2 * N_EMBD, 4, 8, 4
    shapes = {
        "attn_norm.weight": (N_EMBD,),
        "ssm_in.weight": (2 * n_inner, N_EMBD),
        "ssm_conv1d.weight": (n_inner, n_conv),
        "ssm_conv1d.bias": (n_inner,),
        "ssm_x.weight": (n_dt + 2 * n_state, n_inner),
        "ssm_dt.weight": (n_inner, n_dt),
        "ssm_dt.bias": (n_inner,),
        "ssm_a": (n_inner, n_state),
        "ssm_d": (n_inner,),
        "ssm_out.weight": (N_EMBD, n_inner),
    }
    metadata: dict[str, int | list[str]] = {
        "ssm.conv_kernel": n_conv,
        "ssm.inner_size": n_inner,
        "ssm.state_size": n_state,
        "ssm.time_step_rank": n_dt,
    }

    def change(name: str, data: np.ndarray) -> np.ndarray:
        """A state that fades."""
        return -np.abs(data) - 0.1 if name.endswith("ssm_a") else data

    whole = {f"blk.{il}.{name}": shape for il in range(4) for name, shape in shapes.items()}
    return random_model(path, vocab, "mamba", 4, whole, metadata, change)


def with_mtp_head(path: Path, vocab: Path) -> Path:
    """GLM-4.5 with six dense blocks and, as block 6 with experts, its multi-token prediction head."""
    shapes = blocks(7, post_norm="post_attention_norm")
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith("blk.6.ffn_")}
    shapes |= {
        "blk.6.ffn_gate_inp.weight": (N_EXPERT, N_EMBD),
        "blk.6.exp_probs_b.bias": (N_EXPERT,),
        "blk.6.ffn_gate_exps.weight": (N_EXPERT, N_FF, N_EMBD),
        "blk.6.ffn_up_exps.weight": (N_EXPERT, N_FF, N_EMBD),
        "blk.6.ffn_down_exps.weight": (N_EXPERT, N_EMBD, N_FF),
        "blk.6.ffn_gate_shexp.weight": (N_FF, N_EMBD),
        "blk.6.ffn_up_shexp.weight": (N_FF, N_EMBD),
        "blk.6.ffn_down_shexp.weight": (N_EMBD, N_FF),
        "blk.6.nextn.eh_proj.weight": (N_EMBD, 2 * N_EMBD),
        "blk.6.nextn.enorm.weight": (N_EMBD,),
        "blk.6.nextn.hnorm.weight": (N_EMBD,),
    }
    metadata: dict[str, int | list[str]] = {
        "nextn_predict_layers": 1,
        "leading_dense_block_count": 6,
        "expert_count": N_EXPERT,
        "expert_used_count": 1,
        "expert_shared_count": 1,
        "expert_feed_forward_length": N_FF,
    }

    def change(name: str, data: np.ndarray) -> np.ndarray:
        """Blocks change the stream, and the head listens to it, only so far that some drafts are right."""
        if WRITERS.fullmatch(name):
            return 0.4 * data
        if name.endswith("eh_proj.weight"):
            return np.concatenate([np.eye(N_EMBD), 0.3 * data[:, N_EMBD:]], axis=1)
        return data

    return random_model(path, vocab, "glm4moe", 7, shapes, metadata, change)


def reranker(path: Path, vocab: Path) -> Path:
    """Qwen3 with six blocks and a head that scores a text."""
    shapes = blocks(6, post_norm="ffn_norm")
    shapes["cls.output.weight"] = (2, N_EMBD)
    metadata: dict[str, int | list[str]] = {"pooling_type": 4, "classifier.output_labels": ["yes", "no"]}
    return random_model(path, vocab, "qwen3", 6, shapes, metadata)


def projector(path: Path, n_embd_text: int) -> Path:
    """A LLaVA projector behind a vision tower of two blocks: four patches of an image of 28 x 28."""
    linear = {"attn_q": 1, "attn_k": 1, "attn_v": 1, "attn_out": 1, "ffn_up": 2, "ffn_down": -2}
    shapes: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (N_EMBD, 3, 14, 14),
        "v.position_embd.weight": (4, N_EMBD),
        "mm.0.weight": (n_embd_text, N_EMBD),
        "mm.0.bias": (n_embd_text,),
        "mm.2.weight": (n_embd_text, n_embd_text),
        "mm.2.bias": (n_embd_text,),
    }
    for il in range(2):
        for name, wide in linear.items():
            n_in, n_out = (N_FF if wide < 0 else N_EMBD), (N_FF if wide > 1 else N_EMBD)
            shapes |= {f"v.blk.{il}.{name}.weight": (n_out, n_in), f"v.blk.{il}.{name}.bias": (n_out,)}
        shapes |= {
            f"v.blk.{il}.{ln}.{part}": (N_EMBD,) for ln in ("ln1", "ln2") for part in ("weight", "bias")
        }
    writer = GGUFWriter(path, "clip")
    writer.add_file_type(0)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", True)
    for key, value in {
        "image_size": 28,
        "patch_size": 14,
        "embedding_length": N_EMBD,
        "feed_forward_length": N_FF,
        "block_count": 2,
        "projection_dim": n_embd_text,
        "attention.head_count": N_HEAD,
    }.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    random = np.random.default_rng(12)
    for name, shape in shapes.items():
        writer.add_tensor(name, random.normal(0, 0.1, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
