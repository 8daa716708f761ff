#include "bindings/context/states.h"

#include "bindings/context/arrays.h"
#include "bindings/threads/gil.h"
#include "llama-skip.h"

#include <pybind11/stl.h>

#include <algorithm>

static py::array_t<float> stack(const llama_skip_streams::rows & rows, py::ssize_t n_tokens, py::ssize_t n_embd) {
    py::array_t<float> res({ (py::ssize_t) rows.size(), n_tokens, n_embd });
    float *            dst = res.mutable_data();
    for (const auto & values : rows) {
        dst = std::copy(values.begin(), values.end(), dst);
    }
    return res;
}

static std::vector<int32_t> kept_blocks(const py_context & ctx) {
    std::vector<int32_t> res;
    for (int32_t il = 0; il < llama_model_n_layer(ctx.model->raw); ++il) {
        if (!llama_skip_is_masked(ctx.raw, il)) {
            res.push_back(il);
        }
    }
    return res;
}

// Decodes tokens and collects the stream meanwhile; logits and outputs may be null. Without the GIL.
static void collect(py_context & ctx, const std::vector<llama_token> & tokens, llama_pos pos, llama_seq_id seq_id,
    int32_t first, float * logits, const std::vector<int32_t> & kept, llama_skip_streams::rows & inputs,
    llama_skip_streams::rows * outputs) {
    ctx.states.begin(kept, ctx.model->arch());
    try {
        ctx.decode(tokens, pos, seq_id, first, logits);
    } catch (...) {
        ctx.states.stop();
        throw;
    }
    ctx.states.end(tokens.size() * llama_model_n_embd(ctx.model->raw), inputs, outputs);
}

static std::vector<llama_token> check_states(const py_context & ctx, const tokens_array & tokens) {
    if (!ctx.has_states) {
        throw std::runtime_error("this context was created without hidden_states");
    }
    return check_tokens(ctx, tokens);
}

static py::tuple hidden(py_context & ctx, const tokens_array & tokens, llama_pos pos, llama_seq_id seq_id) {
    const auto checked = check_states(ctx, tokens);
    const auto lock    = ctx.enter();
    const auto kept    = kept_blocks(ctx);

    llama_skip_streams::rows inputs;
    llama_skip_streams::rows outputs;
    {
        const without_gil nogil;
        collect(ctx, checked, pos, seq_id, 0, nullptr, kept, inputs, &outputs);
    }
    const auto n_embd = llama_model_n_embd(ctx.model->raw);
    return py::make_tuple(kept, stack(inputs, checked.size(), n_embd), stack(outputs, checked.size(), n_embd));
}

static py::tuple trace(
    py_context & ctx, const tokens_array & tokens, llama_pos pos, llama_seq_id seq_id, int32_t first) {
    const auto checked = check_states(ctx, tokens);
    auto       logits  = logits_rows(ctx, checked.size(), first);
    float *    data    = logits.mutable_data();
    const auto lock    = ctx.enter();
    const auto kept    = kept_blocks(ctx);

    llama_skip_streams::rows inputs;
    {
        const without_gil nogil;
        collect(ctx, checked, pos, seq_id, first, data, kept, inputs, nullptr);
    }
    return py::make_tuple(kept, stack(inputs, checked.size(), llama_model_n_embd(ctx.model->raw)), logits);
}

static py::array_t<float> resume(py_context & ctx, const py::array_t<float, py::array::c_style> & stream, llama_pos pos,
    llama_seq_id seq_id, int32_t first) {
    const auto n_embd = llama_model_n_embd(ctx.model->raw);
    if (stream.ndim() != 2 || stream.shape(0) == 0 || stream.shape(1) != n_embd) {
        throw std::invalid_argument("stream: expected float32 [n_tokens, " + std::to_string(n_embd) + "]");
    }
    if (!ctx.model->has_weights) {
        throw std::runtime_error("a model loaded without weights cannot decode");
    }
    if (llama_model_n_embd_inp(ctx.model->raw) != n_embd) {
        throw std::runtime_error("this model takes other input than rows of its residual stream");
    }
    auto          rows = logits_rows(ctx, stream.shape(0), first);
    float *       data = rows.mutable_data();
    const float * from = stream.data();
    const auto    n    = (int32_t) stream.shape(0);
    const auto    lock = ctx.enter();

    const without_gil nogil;
    ctx.decode_stream(from, n, pos, seq_id, first, data);
    return rows;
}

static const float * found(const float * values) {
    if (values == nullptr) {
        throw std::runtime_error("this context gives no embeddings");
    }
    return values;
}

// one array for each sequence: [n_tokens, n_embd] without pooling, else [n_embd], or the scores of a ranking model
static py::list embed(py_context & ctx, const std::vector<tokens_array> & sequences) {
    std::vector<std::vector<llama_token>> checked;
    for (const auto & tokens : sequences) {
        checked.push_back(check_tokens(ctx, tokens));
    }
    const auto lock    = ctx.enter();
    const auto pooling = llama_pooling_type(ctx.raw);
    const auto n_embd  = (py::ssize_t)(pooling == LLAMA_POOLING_TYPE_RANK ? llama_model_n_cls_out(ctx.model->raw)
                                                                          : llama_model_n_embd_out(ctx.model->raw));
    {
        const without_gil nogil;
        ctx.decode_sequences(checked);
    }
    py::list res;
    int32_t  i_token = 0;
    for (size_t i = 0; i < checked.size(); ++i) {
        if (pooling != LLAMA_POOLING_TYPE_NONE) {
            res.append(py::array_t<float>(n_embd, found(llama_get_embeddings_seq(ctx.raw, (llama_seq_id) i))));
            continue;
        }
        py::array_t<float> rows({ (py::ssize_t) checked[i].size(), n_embd });
        for (size_t j = 0; j < checked[i].size(); ++j) {
            const float * row = found(llama_get_embeddings_ith(ctx.raw, i_token++));
            std::copy(row, row + n_embd, rows.mutable_data(j));
        }
        res.append(rows);
    }
    llama_memory_clear(ctx.memory(), false);
    return res;
}

void register_context_states(py::class_<py_context> & c) {
    c.def("hidden_states", hidden, py::arg("tokens"), py::arg("pos"), py::arg("seq_id"))
        .def("trace", trace, py::arg("tokens"), py::arg("pos"), py::arg("seq_id"), py::arg("first"))
        .def("resume", resume, py::arg("stream"), py::arg("pos"), py::arg("seq_id"), py::arg("first"))
        .def("embed", embed, py::arg("sequences"))
        .def_property_readonly("pooling_type", [](const py_context & s) { return (int) llama_pooling_type(s.raw); })
        .def_property_readonly("n_seq_max", [](const py_context & s) { return llama_n_seq_max(s.raw); });
}
