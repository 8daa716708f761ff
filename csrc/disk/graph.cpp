#include "disk/graph.h"

#include "llama-graph.h"
#include "llama-impl.h"

#include "ggml-backend.h"

#include <algorithm>
#include <stdexcept>
#include <unordered_map>
#include <unordered_set>

using tensor_set = std::unordered_set<const ggml_tensor *>;

static bool is_disk(const llm_graph_context & llm, int32_t il) {
    return il >= 0 && llm.cparams.skip.disk.blocks[il] && !llm.cparams.skip.out[il];
}

static ggml_tensor * tensor_after(ggml_context * ctx, ggml_tensor * prev) {
    return prev ? ggml_get_next_tensor(ctx, prev) : ggml_get_first_tensor(ctx);
}

static tensor_set tensors_of(ggml_context * ctx, const llama_skip_disk_trace::span & span, ggml_tensor * last) {
    tensor_set    res;
    ggml_tensor * t = span.before == last ? nullptr : tensor_after(ctx, span.before);
    for (; t != nullptr; t = t == last ? nullptr : ggml_get_next_tensor(ctx, t)) {
        res.insert(t);
    }
    return res;
}

void llama_skip_disk_norm(const llm_graph_context & llm, ggml_tensor * cur, int il) {
    if (is_disk(llm, il)) {
        llm.res->skip_trace.disk.input.emplace(il, cur);
    }
}

// Whether one of the tensors in `within` that `t` is made from satisfies `is`, without looking behind `stop`.
template <typename F>
static bool made_from(ggml_tensor * t, const ggml_tensor * stop, const tensor_set & within, const F & is) {
    std::vector<ggml_tensor *> todo = { t };
    tensor_set                 seen;
    while (!todo.empty()) {
        ggml_tensor * cur = todo.back();
        todo.pop_back();
        if (cur == stop || within.count(cur) == 0 || !seen.insert(cur).second) {
            continue;
        }
        for (ggml_tensor * src : cur->src) {
            if (src != nullptr && is(src)) {
                return true;
            }
            if (src != nullptr) {
                todo.push_back(src);
            }
        }
        if (cur->view_src != nullptr) {
            todo.push_back(cur->view_src);
        }
    }
    return false;
}

// Whether `t` is the stream `x` with something added to it, and perhaps normed: the output of a branch alone is not.
static bool continues(ggml_tensor * t, const ggml_tensor * x, const tensor_set & block) {
    std::vector<ggml_tensor *> todo = { t };
    tensor_set                 seen;
    while (!todo.empty()) {
        ggml_tensor * cur = todo.back();
        todo.pop_back();
        if (cur == x) {
            return true;
        }
        if (block.count(cur) == 0 || !seen.insert(cur).second) {
            continue;
        }
        switch (cur->op) {
            case GGML_OP_ADD:
                todo.push_back(cur->src[1]);
                [[fallthrough]];
            case GGML_OP_MUL:
            case GGML_OP_SCALE:
            case GGML_OP_NORM:
            case GGML_OP_RMS_NORM:
            case GGML_OP_GET_ROWS:
            case GGML_OP_RESHAPE:
            case GGML_OP_VIEW:
            case GGML_OP_CONT:
                todo.push_back(cur->src[0]);
                break;
            default:
                break;
        }
    }
    return false;
}

// The stream as block il found it, in the rows of `cur`; null where it is not known.
static ggml_tensor * block_input(
    const llm_graph_context & llm, ggml_tensor * cur, int il, const llama_skip_disk_trace & trace) {
    ggml_tensor * x = llm.res->t_layer_inp[il];
    if (x == nullptr) {
        const auto it = trace.input.find(il);
        x             = it == trace.input.end() ? nullptr : it->second;
    }
    if (x == nullptr) {
        return nullptr;
    }
    if (!trace.is_open || trace.spans.back().il != il) {
        return nullptr;
    }
    const auto &     span  = trace.spans.back();
    const tensor_set block = tensors_of(llm.ctx0, span, trace.last_tensor(span.before));
    // the norm of a block without one in front reads what the block has already worked on
    const auto is_weight = [il](const ggml_tensor * t) {
        return t->op == GGML_OP_NONE && llama_skip_block_of(t->name) == il;
    };
    if (made_from(x, nullptr, block, is_weight) || !continues(cur, x, block)) {
        return nullptr;
    }
    for (const auto & input : llm.res->inputs) {
        const auto * rows = dynamic_cast<const llm_graph_input_out_ids *>(input.get());
        if (rows != nullptr && made_from(cur, x, block, [&](const ggml_tensor * t) { return t == rows->out_ids; })) {
            x = ggml_get_rows(llm.ctx0, x, rows->out_ids);
        }
    }
    const bool is_stream = cur->ne[0] == llm.n_embd && cur->ne[2] == 1 && cur->ne[3] == 1;
    return is_stream && ggml_are_same_shape(x, cur) && x->type == cur->type ? x : nullptr;
}

ggml_tensor * llama_skip_disk_out(const llm_graph_context & llm, ggml_tensor * cur, int il) {
    const llama_skip & skip = llm.cparams.skip;
    if (!skip.disk.any()) {
        return cur;
    }
    if (!is_disk(llm, il)) {
        return cur;
    }
    auto & trace = llm.res->skip_trace.disk;

    ggml_tensor * x = skip.disk.scale[il] == 1.0f ? nullptr : block_input(llm, cur, il, trace);
    if (x != nullptr) {
        ggml_tensor * residual = ggml_scale(llm.ctx0, ggml_sub(llm.ctx0, cur, x), skip.disk.scale[il]);
        llm.cb(residual, "disk_residual", il);
        cur = ggml_add(llm.ctx0, x, residual);
        trace.scaled.set(il);
    }
    return cur;
}

// the disk block that a tensor was created for
using block_map = std::unordered_map<const ggml_tensor *, int32_t>;

// Whether a node can be put on the host: a view is where its source is, so that has to be of a disk block or in host
// memory.
static bool is_movable(const ggml_tensor * t, const block_map & blocks) {
    switch (t->op) {
        case GGML_OP_NONE:
        case GGML_OP_RESHAPE:
        case GGML_OP_VIEW:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
            return false;
        default:
            break;
    }
    const ggml_tensor * src = t->view_src;
    return src == nullptr || blocks.count(src) > 0 || (src->buffer && ggml_backend_buffer_is_host(src->buffer));
}

static bool reads_disk(const llm_graph_context & llm, const ggml_tensor * node) {
    return std::any_of(std::begin(node->src), std::end(node->src), [&](const ggml_tensor * src) {
        return src != nullptr && src->op == GGML_OP_NONE && is_disk(llm, llama_skip_block_of(src->name));
    });
}

void llama_skip_disk_place(const llm_graph_context & llm) {
    if (!llm.cparams.skip.disk.any() || llm.sched == nullptr || llm.backend_cpu == nullptr) {
        return;
    }
    auto & trace = llm.res->skip_trace.disk;

    block_map blocks;
    for (const auto & span : trace.spans) {
        if (is_disk(llm, span.il)) {
            for (const ggml_tensor * t : tensors_of(llm.ctx0, span, span.last)) {
                blocks[t] = span.il;
            }
        }
    }
    for (int i = 0; i < ggml_graph_n_nodes(llm.gf); ++i) {
        ggml_tensor * node = ggml_graph_node(llm.gf, i);
        const auto    it   = blocks.find(node);
        // what an architecture does with tensors of the block outside of its loop has to be there as well
        if ((it == blocks.end() && !reads_disk(llm, node)) || !is_movable(node, blocks)) {
            continue;
        }
        ggml_backend_sched_set_tensor_backend(llm.sched, node, llm.backend_cpu);
        if (it != blocks.end()) {
            trace.output[it->second] = node;
        }
    }
}

void llama_skip_disk_check(const llm_graph_result & res, const llm_graph_params & params) {
    const llama_skip & skip = params.cparams.skip;
    if (params.gtype == LLM_GRAPH_TYPE_DECODER_MTP) {
        return; // an MTP head's graph holds no block of the trunk
    }
    for (int32_t il = 0; il < (int32_t) params.hparams.n_layer(); ++il) {
        const bool runs = skip.disk.blocks[il] && !skip.out[il];
        if (runs && skip.disk.scale[il] != 1.0f && !res.skip_trace.disk.scaled[il]) {
            throw std::runtime_error(
                format("architecture '%s' does not show what the residual stream is before block %d, which is on disk: "
                       "only a scale of 0 or 1 is possible",
                    llm_arch_name(params.arch), il));
        }
    }
}
