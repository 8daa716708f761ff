#include "skip-arch.h"

const char * llama_skip_arch_refusal(llm_arch arch) {
    switch (arch) {
        case LLM_ARCH_T5:
        case LLM_ARCH_T5ENCODER:
            return "encoder and decoder number their blocks separately";
        case LLM_ARCH_DEEPSEEK4:
        case LLM_ARCH_HY_V4:
        case LLM_ARCH_GLM5_NEXT:
        case LLM_ARCH_QWEN4EXP:
            return "its hyper-connections carry several residual streams through every block";
        case LLM_ARCH_KIMI_K3:
            return "later blocks attend to the output of earlier ones";
        case LLM_ARCH_GEMMA3N:
        case LLM_ARCH_GEMMA4:
        case LLM_ARCH_GEMMA4_ASSISTANT:
            return "its later blocks read the KV cache of earlier ones";
        case LLM_ARCH_HRM_TEXT:
        case LLM_ARCH_NANBEIGE:
            return "its blocks run more than once";
        case LLM_ARCH_RWKV6:
        case LLM_ARCH_RWKV6QWEN2:
            return "it rescales the residual stream at fixed blocks";
        case LLM_ARCH_MINIMAX_01:
            return "its residual stream is scaled inside every block";
        case LLM_ARCH_TALKIE:
            return "every block adds the embeddings to the residual stream again";
        case LLM_ARCH_EAGLE3:
        case LLM_ARCH_DFLASH:
            return "it is a draft head whose blocks belong to fixed blocks of its target";
        case LLM_ARCH_WAVTOKENIZER_DEC:
        case LLM_ARCH_CLIP:
            return "it is not a language model";
        default:
            return nullptr;
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
