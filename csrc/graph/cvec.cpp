#include "graph/cvec.h"

#include "set/arch.h"
#include "set/spec.h"

#include "llama-adapter.h"
#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>

ggml_tensor * llama_skip_cvec(const llm_graph_context & llm, ggml_tensor * cur, int il) {
    const llama_skip & skip = llm.cparams.skip;

    for (int next = il + 1; next < (int) llm.hparams.n_layer() && skip.out[next]; ++next) {
        // in this order the whole model has them
        cur = skip.model.factor[next] == 1.0f ? cur : ggml_scale(llm.ctx0, cur, skip.model.factor[next]);
        cur = llm.cvec->apply_to(llm.ctx0, cur, next);
    }
    return cur;
}

llama_skip_mask llama_skip_cvec_layers(int32_t il_start, int32_t il_end) {
    llama_skip_mask res;
    for (int32_t il = std::max(il_start, 1); il <= std::min(il_end, LLAMA_SKIP_MAX_LAYERS - 1); ++il) {
        res.set(il);
    }
    return res;
}

std::string llama_skip_cvec_refusal(
    const llama_model & model, const llama_skip & skip, const llama_skip_mask & directions) {
    const llama_skip_mask gone = directions & skip.out;
    if (gone.none()) {
        return "";
    }
    if (llama_skip_arch_of(model.arch).cvec_at_ffn) {
        return format("architecture '%s' applies a control vector behind its feed-forward blocks only: give a range "
                      "without the blocks left out, %s",
            llm_arch_name(model.arch), llama_skip_layers_str(gone).c_str());
    }
    const int32_t n_gap = skip.gap_end(0);

    const llama_skip_mask homeless = gone & llama_skip_cvec_layers(1, n_gap - 1);
    if (homeless.none() || llama_skip_arch_of(model.arch).plain_embd) {
        return "";
    }
    return format(
        "the control vector's directions at blocks %s have no place in architecture '%s' while blocks 0-%d are "
        "left out: its embeddings are changed before the first block; give a range that begins at block %d",
        llama_skip_layers_str(homeless).c_str(), llm_arch_name(model.arch), n_gap - 1, n_gap);
}
