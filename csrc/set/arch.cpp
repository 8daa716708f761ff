#include "set/arch.h"

#include "set/arch-tested.h"

#include "llama-hparams.h"
#include "llama-impl.h"
#include "models/models.h"

#include <algorithm>
#include <cstring>

// Gemma 3n and 4: the last block with a cache of each kind also serves those behind it that have none.
static std::string shared_cache(const llama_hparams & hparams, const llama_skip & skip) {
    const llama_skip_mask out = skip.no_cache();

    const int32_t from = hparams.n_layer_kv_from_start;
    for (int32_t il = from; from >= 0 && il < (int32_t) hparams.n_layer(); ++il) {
        const int32_t owner = from - (hparams.is_swa(il) ? 2 : 1);
        if (!out[il] && out[owner]) {
            return format("block %d reads the KV cache of block %d", il, owner);
        }
    }
    return "";
}

// GLM-5.2, GLM-5-Next, HunYuan V4: an attention block without an indexer attends to what the last indexer before it
// chose.
static std::string shared_indexer(const llama_hparams & hparams, const llama_skip & skip, bool has_recurrent) {
    const llama_skip_mask out = skip.no_cache();

    int32_t owner = -1;
    for (int32_t il = 0; il < (int32_t) hparams.n_layer(); ++il) {
        if (has_recurrent && hparams.is_recr(il)) {
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
static std::string checkpoint(const llama_hparams & hparams, const llama_skip & skip) {
    const int32_t size = hparams.attn_res_block_size;
    for (int32_t il = 0; size > 0 && il < (int32_t) hparams.n_layer(); il += size) {
        if (skip.out[il]) {
            return format("later blocks attend to the residual stream that block %d keeps", il);
        }
    }
    return "";
}

static std::string glm_indexer(const llama_hparams & hparams, const llama_skip & skip) {
    return shared_indexer(hparams, skip, false);
}

static std::string glm5_indexer(const llama_hparams & hparams, const llama_skip & skip) {
    return shared_indexer(hparams, skip, true);
}

static std::string hy_indexer(const llama_hparams & hparams, const llama_skip & skip) {
    return hparams.indexer_top_k > 0 ? shared_indexer(hparams, skip, false) : "";
}

static std::string first_values(const llama_hparams &, const llama_skip & skip) {
    return skip.no_cache()[0] ? "later blocks mix the values of block 0 into their own" : "";
}

static std::string first_bias(const llama_hparams &, const llama_skip & skip) {
    return skip.no_cache()[0] ? "later blocks use the relative position bias of block 0" : "";
}

static std::string loop_norm(const llama_hparams & hparams, const llama_skip & skip) {
    return skip.model.loop_norm && skip.out[hparams.n_layer() / skip.model.n_loop - 1]
               ? "the norm between the loops comes with the last block"
               : "";
}

static bool injects_first(const llama_hparams & hparams, int32_t il) {
    return il < (int32_t) hparams.n_deepstack_layers;
}

static bool injects_mapped(const llama_hparams & hparams, int32_t il) {
    return il > 0 && hparams.deepstack_mapping_arr[il] >= 0;
}

static void nanbeige_loops(const llama_model & model, llama_skip_model & facts) {
    const auto & looped = dynamic_cast<const llama_model_nanbeige &>(model);
    facts.n_loop        = looped.n_loops;
    facts.loop_norm     = looped.n_loops > 1 && !looped.skip_loop_final_norm;
}

static const char * const own_products = "its products are not those of other architectures";

static bool is_tested(llm_arch arch) {
    const char * name = llm_arch_name(arch);
    return std::any_of(std::begin(tested_archs), std::end(tested_archs),
        [name](const char * tested) { return strcmp(tested, name) == 0; });
}

llama_skip_arch llama_skip_arch_of(llm_arch arch) {
    llama_skip_arch res;
    res.tested = is_tested(arch);
    switch (arch) {
        case LLM_ARCH_T5:
            res.refusal = "encoder and decoder number their blocks separately";
            break;
        case LLM_ARCH_HRM_TEXT:
            res.refusal = "its stacks run in cycles whose loops do not go by the number of blocks";
            break;
        case LLM_ARCH_GEMMA4_ASSISTANT:
            res.refusal         = "it is a draft head without blocks of its own to spare";
            res.n_target_caches = 2;
            break;
        case LLM_ARCH_EAGLE3:
            res.refusal = "it is a draft head without blocks of its own to spare";
            break;
        case LLM_ARCH_WAVTOKENIZER_DEC:
            res.refusal = "it is not a language model";
            break;
        case LLM_ARCH_GEMMA3N:
            res.set_refusal = shared_cache;
            break;
        case LLM_ARCH_GEMMA4:
            res.set_refusal   = shared_cache;
            res.factor_tensor = "layer_output_scale.weight";
            break;
        case LLM_ARCH_BAILINGMOE3:
            res.half_refusal[LLAMA_SKIP_MIXER] = own_products;
            break;
        case LLM_ARCH_GRANITE_SWITCH:
            res.half_refusal[LLAMA_SKIP_MIXER] = own_products;
            res.half_refusal[LLAMA_SKIP_FFN]   = own_products;
            break;
        case LLM_ARCH_GLM_DSA:
            res.set_refusal = glm_indexer;
            break;
        case LLM_ARCH_GLM5_NEXT:
            res.set_refusal = glm5_indexer;
            break;
        case LLM_ARCH_HY_V4:
            res.set_refusal = hy_indexer;
            break;
        case LLM_ARCH_KIMI_K3:
            res.set_refusal                    = checkpoint;
            res.half_refusal[LLAMA_SKIP_MIXER] = own_products;
            res.half_refusal[LLAMA_SKIP_FFN]   = own_products;
            break;
        case LLM_ARCH_RWKV6:
            res.rescale = 0.5f;
            break;
        case LLM_ARCH_RWKV7:
        case LLM_ARCH_ARWKV7:
            res.set_refusal = first_values;
            break;
        case LLM_ARCH_T5ENCODER:
            res.set_refusal = first_bias;
            break;
        case LLM_ARCH_NANBEIGE:
            res.set_refusal = loop_norm;
            res.loops       = nanbeige_loops;
            break;
        case LLM_ARCH_NEMOTRON_H:
        case LLM_ARCH_NEMOTRON_H_MOE:
            res.cvec_at_ffn = true;
            break;
        case LLM_ARCH_QWEN3VL:
        case LLM_ARCH_QWEN3VLMOE:
            res.injects = injects_first;
            break;
        case LLM_ARCH_GRANITE_SWA:
            res.injects = injects_mapped;
            break;
        case LLM_ARCH_GRANITE:
            res.injects    = injects_mapped;
            res.plain_embd = true;
            break;
        case LLM_ARCH_EXAONE4:
        case LLM_ARCH_OLMO2:
            res.input_name = "embd";
            res.plain_embd = true;
            break;
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
        case LLM_ARCH_FALCON:
        case LLM_ARCH_GLM4:
        case LLM_ARCH_GLM4_MOE:
        case LLM_ARCH_GPTNEOX:
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
            res.plain_embd = true;
            break;
        default:
            break;
    }
    return res;
}
