#include "bindings/context/methods.h"

#include "bindings/context/arrays.h"
#include "bindings/context/lora.h"
#include "bindings/context/memory.h"
#include "bindings/context/states.h"
#include "bindings/threads/gil.h"
#include "llama-skip.h"

#include <pybind11/stl.h>

static py::array_t<float> decode(
    py_context & ctx, const tokens_array & tokens, llama_pos pos, llama_seq_id seq_id, int32_t first) {
    const auto checked = check_tokens(ctx, tokens);
    auto       rows    = logits_rows(ctx, checked.size(), first);
    float *    data    = rows.mutable_data();
    const auto lock    = ctx.enter();

    const without_gil nogil;
    ctx.decode(checked, pos, seq_id, first, data);
    return rows;
}

static void eval(py_context & ctx, const tokens_array & tokens, llama_pos pos, llama_seq_id seq_id) {
    const auto checked = check_tokens(ctx, tokens);
    const auto lock    = ctx.enter();

    const without_gil nogil;
    ctx.decode(checked, pos, seq_id, (int32_t) checked.size() - 1, nullptr);
}

// the logits of output idx of the last batch, -1: the last one
static py::array_t<float> logits(py_context & ctx, int32_t idx) {
    const auto    lock = ctx.enter();
    log_scope     log;
    const float * row = llama_get_logits_ith(ctx.raw, idx);
    if (row == nullptr) {
        throw std::runtime_error(log.message("there are no logits"));
    }
    return py::array_t<float>(llama_vocab_n_tokens(ctx.model->vocab()), row);
}

static void set_mask(py_context & ctx, const std::string & layers, const std::string & scale) {
    const auto lock = ctx.enter();

    const without_gil nogil;
    log_scope         log(ctx.model->log);
    if (!llama_skip_set_mask(ctx.raw, layers.c_str(), scale.empty() ? nullptr : scale.c_str())) {
        throw std::invalid_argument(llama_skip_error());
    }
}

void register_context(py::module_ & m) {
    using C = py_context;

    py::class_<C> cls(m, "Context");
    cls.def(py::init<std::shared_ptr<py_model>, const py_context_params &>(), py::arg("model"), py::arg("params"))
        .def_property_readonly("n_ctx", [](const C & c) { return llama_n_ctx(c.raw); })
        .def_property_readonly("n_most", [](const C & c) { return c.n_most(); })
        .def_property_readonly("n_threads", [](const C & c) { return llama_n_threads(c.raw); })
        .def_property_readonly("n_threads_batch", [](const C & c) { return llama_n_threads_batch(c.raw); })
        .def_property_readonly("mask", [](const C & c) { return std::string(llama_skip_mask_layers(c.raw)); })
        .def_property_readonly("state_tag", [](const C & c) { return std::string(llama_skip_state_tag(c.raw)); })
        .def("decode", decode, py::arg("tokens"), py::arg("pos"), py::arg("seq_id"), py::arg("first"))
        .def("logits", logits, py::arg("idx"))
        .def("eval", eval, py::arg("tokens"), py::arg("pos"), py::arg("seq_id"))
        .def("set_mask", set_mask, py::arg("layers"), py::arg("scale"));
    register_context_memory(cls);
    register_context_states(cls);
    register_lora(m, cls);
}
