#include "skip-graph.h"

#include "skip-spec.h"

#include "llama-graph.h"
#include "llama-impl.h"

#include "ggml.h"

#include <stdexcept>

ggml_tensor * llama_skip_bypass(const llm_graph_context & llm, ggml_tensor * cur, int il) {
    const llama_skip & skip = llm.cparams.skip;

    const int next = il + 1;
    if (!skip.any() || next >= (int) llm.hparams.n_layer() || !skip.gap_begins(next) || skip.scale[next] == 1.0f) {
        return cur;
    }
    // several streams side by side: what one factor means to them is for the architecture to say
    if (cur->ne[0] != llm.n_embd || cur->ne[2] != 1 || cur->ne[3] != 1) {
        return cur;
    }
    llm.cb(cur, "skip_in", il);
    cur = ggml_scale(llm.ctx0, cur, skip.scale[next]);
    llm.cb(cur, "skip_scale", il);
    llm.res->skip_trace.bypassed.set(next);
    return cur;
}

void llama_skip_expand_inputs(const llm_graph_context & llm) {
    if (!llm.cparams.skip.any()) {
        return;
    }
    for (ggml_tensor * t = ggml_get_first_tensor(llm.ctx0); t != nullptr; t = ggml_get_next_tensor(llm.ctx0, t)) {
        if (t->flags & GGML_TENSOR_FLAG_INPUT) {
            ggml_build_forward_expand(llm.gf, t);
        }
    }
}

void llama_skip_check_graph(const llm_graph_result & res, const llm_graph_params & params) {
    const llama_skip & skip = params.cparams.skip;
    if (!skip.any() || params.gtype == LLM_GRAPH_TYPE_DECODER_MTP) {
        return; // an MTP head's graph holds no block of the trunk
    }
    const llama_skip_mask missed = skip.out & ~res.skip_trace.stepped;
    if (missed.any()) {
        throw std::runtime_error(
            format("architecture '%s' cannot leave out blocks %s: its graph does not step over them",
                llm_arch_name(params.arch), llama_skip_layers_str(missed).c_str()));
    }
    for (int32_t il = 0; il < (int32_t) params.hparams.n_layer(); ++il) {
        if (skip.gap_begins(il) && skip.scale[il] != 1.0f && !res.skip_trace.bypassed[il]) {
            throw std::runtime_error(
                format("architecture '%s' has no place for a scale at the gap that begins at block %d",
                    llm_arch_name(params.arch), il));
        }
    }
}

bool llama_skip_graph_ok(const llm_graph_result & res, const llm_graph_params & params) {
    try {
        llama_skip_check_graph(res, params);
        return true;
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("skip: %s\n", err.what());
        return false;
    }
}
