#include "set/arch.h"

#include "set/spec.h"

#include "llama-hparams.h"
#include "llama-impl.h"

#include <algorithm>
#include <cstring>

#include "set/arch-tested.h"

bool llama_skip_arch_tested(llm_arch arch) {
    const char * name = llm_arch_name(arch);
    return std::any_of(std::begin(tested_archs), std::end(tested_archs),
        [name](const char * tested) { return strcmp(tested, name) == 0; });
}

const char * llama_skip_arch_refusal(llm_arch arch) {
    switch (arch) {
        case LLM_ARCH_T5:
            return "encoder and decoder number their blocks separately";
        case LLM_ARCH_HRM_TEXT:
            return "its stacks run in cycles whose loops do not go by the number of blocks";
        case LLM_ARCH_GEMMA4_ASSISTANT:
        case LLM_ARCH_EAGLE3:
            return "it is a draft head without blocks of its own to spare";
        case LLM_ARCH_WAVTOKENIZER_DEC:
            return "it is not a language model";
        default:
            return nullptr;
    }
}

// Gemma 3n and 4: the last block with a cache of each kind also serves those behind it that have none.
static std::string refusal_shared_cache(const llama_hparams & hparams, const llama_skip_mask & out) {
    const int32_t from = hparams.n_layer_kv_from_start;
    for (int32_t il = from; from >= 0 && il < (int32_t) hparams.n_layer(); ++il) {
        const int32_t owner = from - (hparams.is_swa(il) ? 2 : 1);
        if (!out[il] && out[owner]) {
            return format("block %d reads the KV cache of block %d", il, owner);
        }
    }
    return "";
}

// GLM-5.2, GLM-5-Next, HunYuan V4: an attention block without an indexer attends to what the last indexer before it chose.
static std::string refusal_shared_indexer(const llama_hparams & hparams, llm_arch arch, const llama_skip_mask & out) {
    int32_t owner = -1;
    for (int32_t il = 0; il < (int32_t) hparams.n_layer(); ++il) {
        if (arch == LLM_ARCH_GLM5_NEXT && hparams.is_recr(il)) {
            continue;
        }
        if (hparams.is_indexer_full(il)) {
            owner = il;
        } else if (owner >= 0 && !out[il] && out[owner]) {
            return format("block %d attends to the tokens that the indexer of block %d chooses", il, owner);
        }
    }
    return "";
}

// The stream is restarted at these blocks, and later ones attend to what it was.
static std::string refusal_checkpoint(const llama_hparams & hparams, const llama_skip_mask & out) {
    const int32_t size = hparams.attn_res_block_size;
    for (int32_t il = 0; size > 0 && il < (int32_t) hparams.n_layer(); il += size) {
        if (out[il]) {
            return format("later blocks attend to the residual stream that block %d keeps", il);
        }
    }
    return "";
}

std::string llama_skip_block_refusal(const llama_hparams & hparams, llm_arch arch, const llama_skip & skip) {
    const llama_skip_mask & out = skip.out;
    switch (arch) {
        case LLM_ARCH_GEMMA3N:
        case LLM_ARCH_GEMMA4:
            return refusal_shared_cache(hparams, out);
        case LLM_ARCH_GLM_DSA:
        case LLM_ARCH_GLM5_NEXT:
            return refusal_shared_indexer(hparams, arch, out);
        case LLM_ARCH_HY_V4:
            return hparams.indexer_top_k > 0 ? refusal_shared_indexer(hparams, arch, out) : "";
        case LLM_ARCH_KIMI_K3:
            return refusal_checkpoint(hparams, out);
        case LLM_ARCH_RWKV7:
        case LLM_ARCH_ARWKV7:
            return out[0] ? "later blocks mix the values of block 0 into their own" : "";
        case LLM_ARCH_T5ENCODER:
            return out[0] ? "later blocks use the relative position bias of block 0" : "";
        case LLM_ARCH_NANBEIGE:
            return skip.loop_norm && out[hparams.n_layer() / skip.n_loop - 1]
                       ? "the norm between the loops comes with the last block"
                       : "";
        default:
            return "";
    }
}

bool llama_skip_injects(const llama_hparams & hparams, llm_arch arch, int32_t il) {
    switch (arch) {
        case LLM_ARCH_QWEN3VL:
        case LLM_ARCH_QWEN3VLMOE:
            return il < (int32_t) hparams.n_deepstack_layers;
        case LLM_ARCH_GRANITE:
        case LLM_ARCH_GRANITE_SWA:
            return il > 0 && hparams.deepstack_mapping_arr[il] >= 0;
        default:
            return false;
    }
}

bool llama_skip_arch_plain_embd(llm_arch arch) {
    switch (arch) {
        case LLM_ARCH_APERTUS:
        case LLM_ARCH_ARCEE:
        case LLM_ARCH_BAICHUAN:
        case LLM_ARCH_BITNET:
        case LLM_ARCH_CHATGLM:
        case LLM_ARCH_COHERE2:
        case LLM_ARCH_COMMAND_R:
        case LLM_ARCH_DBRX:
        case LLM_ARCH_DECI:
        case LLM_ARCH_DEEPSEEK:
        case LLM_ARCH_DEEPSEEK2:
        case LLM_ARCH_DOTS1:
        case LLM_ARCH_ERNIE4_5:
        case LLM_ARCH_EXAONE:
        case LLM_ARCH_EXAONE4:
        case LLM_ARCH_FALCON:
        case LLM_ARCH_GLM4:
        case LLM_ARCH_GLM4_MOE:
        case LLM_ARCH_GPTNEOX:
        case LLM_ARCH_GRANITE:
        case LLM_ARCH_GRANITE_MOE:
        case LLM_ARCH_HUNYUAN_MOE:
        case LLM_ARCH_INTERNLM2:
        case LLM_ARCH_LLAMA:
        case LLM_ARCH_LLAMA4:
        case LLM_ARCH_MINIMAX_M2:
        case LLM_ARCH_MISTRAL3:
        case LLM_ARCH_MISTRAL4:
        case LLM_ARCH_NEMOTRON:
        case LLM_ARCH_OLMO:
        case LLM_ARCH_OLMO2:
        case LLM_ARCH_OLMOE:
        case LLM_ARCH_OPENAI_MOE:
        case LLM_ARCH_ORION:
        case LLM_ARCH_PHI2:
        case LLM_ARCH_PHI3:
        case LLM_ARCH_PHIMOE:
        case LLM_ARCH_QWEN:
        case LLM_ARCH_QWEN2:
        case LLM_ARCH_QWEN2MOE:
        case LLM_ARCH_QWEN3:
        case LLM_ARCH_QWEN3MOE:
        case LLM_ARCH_SEED_OSS:
        case LLM_ARCH_SMOLLM3:
        case LLM_ARCH_STABLELM:
        case LLM_ARCH_STARCODER2:
        case LLM_ARCH_XVERSE:
            return true;
        default:
            return false;
    }
}
