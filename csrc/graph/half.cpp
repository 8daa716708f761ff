#include "graph/half.h"

#include "llama-graph.h"

#include "ggml.h"

ggml_tensor * llama_skip_zeros(
    const llm_graph_context & llm, llama_skip_half half, int il, int64_t n_rows, int64_t n_tokens) {
    if (il < 0 || !llm.cparams.skip.half[half][il]) {
        return nullptr;
    }
    llm.res->skip_trace.zeroed[half].set(il);
    ggml_tensor * zeros = ggml_fill(llm.ctx0, ggml_new_tensor_2d(llm.ctx0, GGML_TYPE_F32, n_rows, n_tokens), 0.0f);
    llm.cb(zeros, half == LLAMA_SKIP_MIXER ? "skip_attn" : "skip_ffn", il);
    return zeros;
}

ggml_tensor * llama_skip_ffn(const llm_graph_context & llm, const ggml_tensor * cur, const ggml_tensor * last, int il) {
    return llama_skip_zeros(llm, LLAMA_SKIP_FFN, il, last->ne[1], cur->ne[1]);
}

ggml_tensor * llama_skip_attn(
    const llm_graph_context & llm, const ggml_tensor * wo, const ggml_tensor * q, const ggml_tensor * v_mla, int il) {
    if (il < 0 || !llm.cparams.skip.half[LLAMA_SKIP_MIXER][il]) {
        return nullptr;
    }
    const int64_t n_head = llm.hparams.n_head(il);
    const int64_t n_rows = wo      ? wo->ne[1]
                           : v_mla ? v_mla->ne[1] * n_head
                                   : (int64_t) llm.hparams.n_embd_head_v(il) * n_head;
    return llama_skip_zeros(llm, LLAMA_SKIP_MIXER, il, n_rows, q->ne[2]);
}

ggml_tensor * llama_skip_product(
    const llm_graph_context & llm, const ggml_tensor * w, const ggml_tensor * cur, const ggml_tensor * ids) {
    const llama_skip & skip = llm.cparams.skip;
    if (!skip.any_half() || w->op != GGML_OP_NONE || !llama_skip_matrix(skip, w->name, ggml_n_dims(w))) {
        return nullptr;
    }
    const auto    half = (llama_skip_half) llama_skip_half_of(w->name, ggml_n_dims(w));
    const int32_t il   = llama_skip_block_of(w->name);
    if (llama_skip_ends_half(w->name)) {
        llm.res->skip_trace.zeroed[half].set(il);
    }
    ggml_tensor * shape =
        ids ? ggml_new_tensor_3d(llm.ctx0, GGML_TYPE_F32, w->ne[1], ids->ne[0], ids->ne[1])
            : ggml_new_tensor_4d(llm.ctx0, GGML_TYPE_F32, w->ne[1], cur->ne[1], cur->ne[2], cur->ne[3]);
    return ggml_fill(llm.ctx0, shape, 0.0f);
}
