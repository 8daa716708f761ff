"""Metadata of tiny models of the architectures for which upstream's generator (test-llama-archs) writes
none.

A key without a dot in front of it is the architecture's own. Tensors are what the library asks for
(shapes.py); `drop` names the optional ones that would make it another model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Metadata = dict[str, Any]

COMMON: Metadata = {
    "context_length": 64,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_epsilon": 1e-5,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.sliding_window": 4,
}
EXPERTS: Metadata = {
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_feed_forward_length": 32,
    "expert_shared_count": 1,
    "expert_shared_feed_forward_length": 32,
    "expert_weights_scale": 1.0,
}
ENCODER: Metadata = {
    "attention.causal": False,
    "attention.head_count_kv": 4,
    "pooling_type": 0,
    ".tokenizer.ggml.token_type_count": 2,
}
RWKV: Metadata = {
    "attention.head_count": 0,
    "attention.head_count_kv": 0,
    "embedding_length": 128,
    "wkv.head_size": 64,
    "token_shift_count": 2,
    "time_mix_extra_dim": 8,
    "time_decay_extra_dim": 8,
    "attention.decay_lora_rank": 8,
    "attention.iclr_lora_rank": 8,
    "attention.value_residual_mix_lora_rank": 8,
    "attention.gate_lora_rank": 8,
}
GEMMA4: Metadata = {
    "attention.key_length": 16,
    "attention.value_length": 16,
    "attention.key_length_swa": 16,
    "attention.value_length_swa": 16,
    "rope.freq_base_swa": 1000.0,
    "attention.sliding_window_pattern": [True, True, False, True, True, False, True, True, False],
    "final_logit_softcapping": 30.0,
}


@dataclass(frozen=True)
class Recipe:
    arch: str
    n_layer: int
    metadata: Metadata = field(default_factory=dict)
    drop: str = "$^"  # optional tensors that this model has not, a regular expression
    n_vocab: int = 128
    tensors: bool = True  # without them a file can only be refused


QKV = r"attn_qkv\."
GEMMA3N: Metadata = {
    "attention.head_count": 1,
    "attention.head_count_kv": 1,
    "embedding_length": 32,
    "feed_forward_length": 32,
}
RECIPES: dict[str, Recipe] = {
    # blocks from 20 on read the caches of 18 and 19, which the library knows without being told
    "gemma3n": Recipe(
        "gemma3n",
        7,
        {**GEMMA3N, "attention.sliding_window_pattern": [True, True, False, True, True, False, True]},
        QKV,
    ),
    "gemma3n-shared": Recipe(
        "gemma3n",
        24,
        {**GEMMA3N, "attention.sliding_window_pattern": ([True] * 4 + [False]) * 4 + [True, False] * 2},
        QKV,
    ),
    "gemma4": Recipe("gemma4", 9, {**GEMMA4, "embedding_length_per_layer_input": 0}, "ffn_gate_inp|attn_qkv"),
    "gemma4-shared": Recipe(
        "gemma4",
        9,
        {**GEMMA4, "embedding_length_per_layer_input": 8, "attention.shared_kv_layers": 3},
        "ffn_gate_inp|attn_qkv",
    ),
    "gemma4-moe": Recipe("gemma4", 9, {**GEMMA4, **EXPERTS, "embedding_length_per_layer_input": 0}, QKV),
    "rwkv6": Recipe("rwkv6", 8, {**RWKV, "rescale_every_n_layers": 3}, r"time_mix_lerp_[wkvrg]\."),
    "rwkv6qwen2": Recipe("rwkv6qwen2", 6, {**RWKV, "token_shift_count": 1}, "time_mix_first"),
    "rwkv7": Recipe("rwkv7", 6, RWKV),
    "arwkv7": Recipe("arwkv7", 6, {**RWKV, "token_shift_count": 1}),
    "t5": Recipe("t5", 4, {"attention.relative_buckets_count": 8, "attention.head_count_kv": 4}),
    "t5encoder": Recipe(
        "t5encoder",
        6,
        {"attention.relative_buckets_count": 8, "attention.head_count_kv": 4, "pooling_type": 0},
        r"blk\.[1-9]\d*\.attn_rel_b",
    ),
    "bert": Recipe("bert", 5, ENCODER, r"attn_qkv|^cls"),
    "nomic-bert": Recipe("nomic-bert", 5, ENCODER, "^cls"),
    "nomic-bert-moe": Recipe("nomic-bert-moe", 6, {**ENCODER, **EXPERTS, "moe_every_n_layers": 2}, "^cls"),
    "jina-bert-v2": Recipe("jina-bert-v2", 5, ENCODER, r"attn_qkv|^cls"),
    "jina-bert-v3": Recipe("jina-bert-v3", 5, ENCODER, r"^cls"),
    "neo-bert": Recipe("neo-bert", 5, ENCODER, "^cls"),
    "modern-bert": Recipe("modern-bert", 6, ENCODER, r"^cls|blk\.0\.attn_norm\."),
    "eurobert": Recipe("eurobert", 5, ENCODER, QKV),
    "gemma-embedding": Recipe("gemma-embedding", 7, {"pooling_type": 0}, r"attn_qkv|^dense"),
    "llama-embed": Recipe(
        "llama-embed", 5, {"pooling_type": 0, "attention.causal": False}, r"attn_qkv|rope_"
    ),
    "bitnet": Recipe("bitnet", 5),
    "apertus": Recipe(
        "apertus",
        5,
        {".xielu.alpha_n": 1.0, ".xielu.alpha_p": 1.0, ".xielu.beta": 1.0, ".xielu.eps": 1e-7},
        r"attn_qkv|rope_",
    ),
    "deepseek2-ocr": Recipe(
        "deepseek2-ocr",
        5,
        {**EXPERTS, "leading_dense_block_count": 1, "attention.head_count_kv": 4},
    ),
    "step35": Recipe(
        "step35",
        6,
        {
            **EXPERTS,
            "leading_dense_block_count": 2,
            "rope.freq_base_swa": 1000.0,
            "attention.sliding_window_pattern": [False, True, True, False, True, True],
        },
    ),
    "graniteswitch": Recipe(
        "graniteswitch",
        5,
        {
            "logit_scale": 1.0,
            "adapters.count": 2,
            "adapters.lora_rank": 4,
            "adapters.token_ids_activate": [5, 9],
            "adapters.token_ids_substitute": [6, 10],
        },
    ),
    "dflash": Recipe(
        "dflash", 3, {"target_layers": [1, 2], "attention.sliding_window_pattern": [True] * 3}, tensors=False
    ),
    "eagle3": Recipe("eagle3", 2, {"target_layers": [1, 2, 3], "target_hidden_size": 64}, tensors=False),
    # the head of "gemma4": as wide at its ends, blocks of a window and without like its last two
    "gemma4-assistant": Recipe(
        "gemma4-assistant",
        2,
        {
            **GEMMA4,
            "embedding_length": 32,
            "embedding_length_out": 64,
            "attention.sliding_window_pattern": [True, False],
            "nextn_predict_layers": 2,
        },
        tensors=False,
    ),
    "wavtokenizer-dec": Recipe(
        "wavtokenizer-dec",
        4,
        {
            "features_length": 64,
            "attention.group_norm_epsilon": 1e-5,
            "attention.group_norm_groups": 8,
            "posnet.embedding_length": 64,
            "posnet.block_count": 4,
            "convnext.embedding_length": 64,
            "convnext.block_count": 4,
        },
        tensors=False,
    ),
    "chameleon": Recipe("chameleon", 5, {}, QKV, n_vocab=9000),  # image tokens end at 8195,
}

# What upstream's generator writes.
GENERATED = [
    "afmoe-moe", "arcee-dense", "arctic-moe", "baichuan-dense", "bailingmoe-moe", "bailingmoe2-moe",
    "bailingmoe3-moe", "bloom-dense", "chatglm-dense", "codeshell-dense", "cogvlm-dense",
    "cohere2-dense", "cohere2moe-moe", "command-r-dense", "dbrx-moe", "deci-dense", "deepseek-moe",
    "deepseek2-moe", "deepseek32-moe", "deepseek4-moe", "dots1-moe", "dots3note-moe", "dream-dense",
    "ernie4_5-moe", "ernie4_5-moe-moe", "exaone-dense", "exaone-moe-moe", "exaone4-dense",
    "falcon-dense", "falcon-h1-dense", "gemma-dense", "gemma2-dense", "gemma3-dense", "glm-dsa-moe",
    "glm4-dense", "glm4moe-moe", "glm5-next-moe", "gpt-oss-moe", "gpt2-dense", "gptneox-dense",
    "granite-dense", "granite-moe", "granite_swa-dense", "granitehybrid-dense", "granitemoe-dense",
    "granitemoe-moe", "grok-moe", "grovemoe-moe", "hrm_text-dense", "hunyuan-dense-dense",
    "hunyuan-moe-moe", "hunyuan_vl-dense", "hy_v3-moe", "hy_v4-moe", "internlm2-dense",
    "jais-dense", "jais2-dense", "jamba-dense", "kimi-k3-moe", "kimi-linear-moe", "laguna-moe",
    "lfm2-dense", "lfm2moe-moe", "llada-dense", "llada-moe-moe", "llama-dense", "llama-moe",
    "llama4-moe", "maincoder-dense", "mamba-dense", "mamba2-dense", "maple-moe", "mellum-moe",
    "mimo2-moe", "minicpm-dense", "minicpm-moe", "minicpm3-dense", "minimax-01-moe",
    "minimax-m2-moe", "minimax-m3-moe", "mistral3-dense", "mistral3-moe", "mistral4-moe",
    "mpt-dense", "muse-glimmer-dense", "nanbeige-dense", "nemotron-dense", "nemotron_h-dense",
    "nemotron_h_moe-dense", "olmo-dense", "olmo2-dense", "olmoe-moe", "openelm-dense",
    "orion-dense", "paddleocr-moe", "pangu-embedded-dense", "phi2-dense", "phi3-dense",
    "phimoe-moe", "plamo-dense", "plamo2-dense", "plamo3-dense", "pockettts-dense", "qwen-dense",
    "qwen2-dense", "qwen2moe-moe", "qwen2vl-dense", "qwen3-dense", "qwen35-dense", "qwen35moe-moe",
    "qwen3moe-moe", "qwen3next-moe", "qwen3tts-dense", "qwen3vl-dense", "qwen3vlmoe-moe",
    "qwen4exp-moe", "refact-dense", "refact-moe", "rnd1-moe", "seed_oss-dense", "smallthinker-moe",
    "smollm3-dense", "spark2_5-dense", "stablelm-dense", "starcoder-dense", "starcoder2-dense",
    "talkie-dense", "xverse-dense",
]  # fmt: skip
MALFORMED = {
    "refact-moe": "its graph reads the dense feed-forward that upstream's generated file does not have"
}

# With a NextN block behind the trunk, made from this one of it (with_nextn() in arch_files.py).
NEXTN = {
    "glm4moe-moe": 4,
    "bailingmoe2-moe": 4,
    "hy_v3-moe": 4,
    "mimo2-moe": 4,
    "qwen35-dense": 3,
    "qwen35moe-moe": 3,
}

# What upstream's generated models become: more blocks, narrow feed-forwards, windows and top-k so small that
# they matter in a short prompt.
DEEPER: dict[str, Metadata] = {
    "*": {
        "block_count": 5,
        "attention.sliding_window": 4,
        "attention.indexer.top_k": 4,
        "feed_forward_length": 64,
        "expert_feed_forward_length": 64,
        "expert_shared_feed_forward_length": 32,
    },
    "deepseek4-moe": {"block_count": 6, "attention.compress_ratios": [0, 0, 4, 128, 4, 128]},
    "glm-dsa-moe": {"attention.indexer.types": [1, 0, 1, 0, 1]},
    "glm5-next-moe": {
        "block_count": 6,
        "attention.head_count_kv": [1, 0, 1, 1, 0, 1],
        "attention.recurrent_layers": [0, 1, 0, 0, 1, 0],
        "attention.indexer.types": [1, 1, 1, 0, 1, 1],
    },
    "hy_v4-moe": {"attention.indexer.types": [1, 0, 1, 0, 1]},
    "ernie4_5-moe-moe": {"interleave_moe_layer_step": 1},
    "hrm_text-dense": {"block_count": 6},
    "minimax-01-moe": {
        "block_count": 9,
        "attention.recurrent_layers": [1, 0, 0, 1, 0, 1, 0, 0, 1],
    },
    "kimi-k3-moe": {"block_count": 6, "attn_res.block_size": 3},
    "llama4-moe": {"block_count": 6},
    "qwen3vl-deepstack": {"base": "qwen3vl-dense", "n_deepstack_layers": 2},
    "nanbeige-loops": {"base": "nanbeige-dense", "block_count": 3, "num_loops": 2},
    "nanbeige-loops-no-norm": {
        "base": "nanbeige-dense",
        "block_count": 3,
        "num_loops": 2,
        "skip_loop_final_norm": True,
    },
}

# Where no list says which blocks have a window, or are recurrent: llama.cpp computes it from their numbers.
COMPUTED: dict[str, Metadata] = {
    f"{name}-computed": {
        "base": name,
        "block_count": 9,
        "attention.sliding_window_pattern": None,
        "attention.recurrent_layers": None,
    }
    for name in (
        *("afmoe-moe", "cohere2-dense", "cohere2moe-moe", "exaone-moe-moe", "exaone4-dense", "gemma2-dense"),
        *("gemma3-dense", "gpt-oss-moe", "laguna-moe", "llama4-moe", "mellum-moe", "muse-glimmer-dense"),
        *(
            "olmo2-dense",
            "plamo3-dense",
            "smallthinker-moe",
            "qwen35-dense",
            "qwen35moe-moe",
            "qwen3next-moe",
        ),
        "qwen4exp-moe",
    )
}
