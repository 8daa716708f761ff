#include "graph/graph.h"

#include "bypass/bypass.h"
#include "disk/graph.h"
#include "set/arch.h"
#include "set/spec.h"

#include "llama-context.h"
#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-memory-recurrent.h"
#include "llama-model.h"

#include "ggml.h"

#include <cstring>
#include <stdexcept>

ggml_tensor * llama_skip_bypass(const llm_graph_context & llm, ggml_tensor * cur, int il) {
    const llama_skip & skip = llm.cparams.skip;

    const int next = il + 1;
    if (!skip.any() || next >= LLAMA_SKIP_MAX_LAYERS || !skip.has_bypass(next)) {
        return cur;
    }
    // several streams side by side: what one factor means to them is for the architecture to say
    if (cur->ne[0] != llm.n_embd || cur->ne[2] != 1 || cur->ne[3] != 1) {
        return cur;
    }
    llm.cb(cur, "skip_in", il);
    if (skip.bypass[next] != nullptr) {
        cur = llama_skip_apply_bypass(llm, cur, *skip.bypass[next], il);
    } else {
        cur = skip.scale[next] == 1.0f ? cur : ggml_scale(llm.ctx0, cur, skip.scale[next]);
        llm.cb(cur, "skip_scale", il);
    }
    llm.res->skip_trace.bypassed.set(next);
    return cur;
}

// A draft head may read what enters a block that is left out: the stream that crosses the gap.
static void publish_inputs(const llm_graph_context & llm) {
    const llama_skip & skip    = llm.cparams.skip;
    const auto &       wanted  = llm.cparams.embeddings_layer_inp;
    const int          n_layer = llm.hparams.n_layer();
    auto &             inputs  = llm.res->t_layer_inp;
    for (int il = 0; il < n_layer; ++il) {
        if (!skip.out[il] || !wanted[il]) {
            continue;
        }
        int next = il;
        while (next < n_layer && skip.out[next]) {
            ++next;
        }
        if (inputs[next] == nullptr) {
            throw std::runtime_error(format("a draft head reads the input of block %d, which no kept block has", il));
        }
        inputs[il] = inputs[next];
    }
}

std::unique_ptr<llm_graph_context> llama_skip_build_graph(const llama_model & model, const llm_graph_params & params) {
    std::unique_ptr<llm_graph_context> llm;
    try {
        llm = model.build_arch_graph(params);
        llama_skip_disk_place(*llm);
    } catch (const std::exception & err) {
        const llama_skip & skip = params.cparams.skip;
        if (!skip.any()) {
            throw;
        }
        const bool no_cache = skip.any_half() && dynamic_cast<const std::out_of_range *>(&err) != nullptr;
        throw std::runtime_error(
            format("architecture '%s' cannot leave out blocks %s: its graph does not step over them (%s)",
                llm_arch_name(params.arch), llama_skip_set_str(skip).c_str(),
                no_cache ? "it uses a cache that they would have" : err.what()));
    }
    publish_inputs(*llm);
    return llm;
}

static llm_graph_input_rs * recurrent_input(llm_graph_input_i * input) {
    if (auto * of = dynamic_cast<llm_graph_input_mem_hybrid *>(input)) {
        return of->inp_rs.get();
    }
    if (auto * of = dynamic_cast<llm_graph_input_mem_hybrid_k *>(input)) {
        return of->inp_rs.get();
    }
    if (auto * of = dynamic_cast<llm_graph_input_mem_hybrid_iswa *>(input)) {
        return of->inp_rs.get();
    }
    return dynamic_cast<llm_graph_input_rs *>(input);
}

// A batch moves the states of all sequences between its cells, of those that are not in it too, block by block
// (build_rs): a block that is masked has to move its own.
static void move_states(const llm_graph_context & llm, const llm_graph_input_rs & inp) {
    const llama_skip_mask masked = llm.cparams.skip.out & ~llm.hparams.skip.out;
    for (int32_t il = 0; il < (int32_t) llm.hparams.n_layer(); ++il) {
        if (!masked[il] || (llm_arch_is_hybrid(llm.arch) && !llm.hparams.is_recr(il))) {
            continue;
        }
        for (ggml_tensor * states : { inp.mctx->get_r_l(il), inp.mctx->get_s_l(il) }) {
            if (ggml_nelements(states) > 0) {
                ggml_tensor * moved = ggml_get_rows(llm.ctx0, states, inp.s_copy);
                ggml_tensor * cells = ggml_view_2d(llm.ctx0, states, states->ne[0], inp.s_copy->ne[0], states->nb[1],
                    inp.mctx->get_head() * states->nb[1]);
                ggml_build_forward_expand(llm.gf, ggml_cpy(llm.ctx0, moved, cells));
            }
        }
    }
}

void llama_skip_expand_inputs(const llm_graph_context & llm) {
    if (!llm.cparams.skip.any()) {
        return;
    }
    for (const auto & input : llm.res->inputs) {
        if (const llm_graph_input_rs * inp = recurrent_input(input.get())) {
            move_states(llm, *inp);
        }
    }
    for (ggml_tensor * t = ggml_get_first_tensor(llm.ctx0); t != nullptr; t = ggml_get_next_tensor(llm.ctx0, t)) {
        if (t->flags & GGML_TENSOR_FLAG_INPUT) {
            ggml_build_forward_expand(llm.gf, t);
        }
    }
}

// The first tensor that a node reads and that was not loaded; only what llama_skip_files::shapes holds has neither data
// nor an operation, and is no input of the graph.
static const ggml_tensor * find_unloaded(ggml_cgraph * gf, const llama_skip & skip) {
    for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
        for (const ggml_tensor * src : ggml_graph_node(gf, i)->src) {
            if (src && skip.any_half() && src->op == GGML_OP_NONE &&
                llama_skip_matrix(skip, src->name, ggml_n_dims(src))) {
                return src; // masked at run time, it has its data
            }
            if (src && src->op == GGML_OP_NONE && !src->buffer && !src->data && !src->view_src &&
                !(src->flags & GGML_TENSOR_FLAG_INPUT) && strstr(src->name, "blk.") != nullptr) {
                return src;
            }
        }
    }
    return nullptr;
}

// A draft head without a cache of its own reads those of its target.
static void check_target(const llm_graph_params & params) {
    const int32_t n_caches = llama_skip_arch_of(params.arch).n_target_caches;
    if (n_caches == 0 || params.cparams.ctx_other == nullptr) {
        return;
    }
    const llama_skip & skip    = params.cparams.ctx_other->get_cparams().skip;
    const int32_t      n_layer = llama_model_n_layer(llama_get_model(params.cparams.ctx_other));
    for (int32_t il = n_layer - n_caches; il < n_layer; ++il) {
        if (skip.no_cache()[il]) {
            throw std::runtime_error(
                format("architecture '%s' reads the KV cache of block %d of its target, which is left out",
                    llm_arch_name(params.arch), il));
        }
    }
}

void llama_skip_check_graph(const llm_graph_result & res, const llm_graph_params & params) {
    check_target(params);
    llama_skip_disk_check(res, params);
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
    if (const ggml_tensor * src = find_unloaded(res.get_gf(), skip)) {
        throw std::runtime_error(format("architecture '%s' cannot leave out blocks %s: its graph reads '%s'",
            llm_arch_name(params.arch), llama_skip_set_str(skip).c_str(), src->name));
    }
    for (int half = 0; half < LLAMA_SKIP_N_HALVES; ++half) {
        const llama_skip_mask left = skip.half[half] & ~res.skip_trace.zeroed[half];
        if (left.any()) {
            throw std::runtime_error(format("architecture '%s' cannot leave out %s alone: it is no branch of its own "
                                            "there",
                llm_arch_name(params.arch),
                llama_skip_layers_str(left, std::string(":") + llama_skip_half_names[half]).c_str()));
        }
    }
    const auto injects = params.ubatch.embd ? llama_skip_arch_of(params.arch).injects : nullptr;
    for (int32_t il = 0; il < (int32_t) params.hparams.n_layer(); ++il) {
        if (injects != nullptr && skip.out[il] && injects(params.hparams, il)) {
            throw std::runtime_error(
                format("architecture '%s' cannot read images without block %d: their features are added there",
                    llm_arch_name(params.arch), il));
        }
    }
    for (int32_t il = 0; il < LLAMA_SKIP_MAX_LAYERS; ++il) {
        if (skip.has_bypass(il) && !res.skip_trace.bypassed[il]) {
            throw std::runtime_error(
                format("architecture '%s' has no place for a bypass at block %d", llm_arch_name(params.arch), il));
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

bool llama_skip_is_dead(const llama_skip & skip, ggml_cgraph * gf, const ggml_tensor * node) {
    for (int i = 0; skip.any_half() && i < ggml_graph_n_nodes(gf); ++i) {
        if (ggml_graph_node(gf, i) == node) {
            return false;
        }
    }
    return skip.any_half();
}

ggml_tensor * llama_skip_state(ggml_tensor * state, int il) {
    if (state == nullptr) {
        throw std::runtime_error(format("block %d has no recurrent state", il));
    }
    return state;
}
