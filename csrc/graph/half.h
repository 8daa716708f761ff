#pragma once

// What stands for a half of a block that is left out: zeros, which the stream and the norms before it pass unchanged.

#include "set/blocks.h"

#include <cstdint>
#include <tuple>

struct ggml_tensor;
struct llm_graph_context;

// Each returns null where the half runs.
ggml_tensor * llama_skip_zeros(
    const llm_graph_context & llm, llama_skip_half half, int il, int64_t n_rows, int64_t n_tokens);
ggml_tensor * llama_skip_ffn(const llm_graph_context & llm, const ggml_tensor * cur, const ggml_tensor * last, int il);

// the product with a matrix of such a half, ids null or the experts of build_lora_mm_id()
ggml_tensor * llama_skip_product(
    const llm_graph_context & llm, const ggml_tensor * w, const ggml_tensor * cur, const ggml_tensor * ids = nullptr);

ggml_tensor * llama_skip_attn(
    const llm_graph_context & llm, const ggml_tensor * wo, const ggml_tensor * q, const ggml_tensor * v_mla, int il);

// A member of llm_graph_context before its build_attn(), which graph.patch renames: all of them end with the block.
#define LLAMA_SKIP_BUILD_ATTN                                                                                         \
    template <typename Input, typename... Rest>                                                                       \
    ggml_tensor * build_attn(Input * inp, ggml_tensor * wo, ggml_tensor * wo_b, ggml_tensor * wo_s, ggml_tensor * q,  \
        ggml_tensor * k, ggml_tensor * v, ggml_tensor * kq_b, ggml_tensor * sinks, ggml_tensor * v_mla, Rest... rest) \
        const {                                                                                                       \
        const int     il    = std::get<sizeof...(Rest) - 1>(std::make_tuple(rest...));                                \
        ggml_tensor * zeros = llama_skip_attn(*this, wo, q, v_mla, il);                                               \
        return zeros ? zeros : build_attn_kept(inp, wo, wo_b, wo_s, q, k, v, kq_b, sinks, v_mla, rest...);            \
    }
