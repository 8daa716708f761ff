#include "bindings/model/methods.h"

#include "bindings/model/model.h"
#include "bindings/model/vocab.h"
#include "bindings/threads/gil.h"
#include "load/load.h"
#include "llama-skip.h"

#include <pybind11/stl.h>

static py::dict metadata(const py_model & model) {
    py::dict res;
    for (int32_t i = 0; i < llama_model_meta_count(model.raw); ++i) {
        const std::string key =
            read_text([&](char * buf, size_t n) { return llama_model_meta_key_by_index(model.raw, i, buf, n); });
        const std::string value =
            read_text([&](char * buf, size_t n) { return llama_model_meta_val_str_by_index(model.raw, i, buf, n); });
        // a GGUF string is UTF-8 by its specification, not always in fact
        res[py::bytes(key).attr("decode")("utf-8", "replace")] = py::bytes(value).attr("decode")("utf-8", "replace");
    }
    return res;
}

static std::vector<int32_t> disk_layers(const py_model & model) {
    std::vector<int32_t> res;
    for (int32_t il = 0; il < llama_model_n_layer(model.raw); ++il) {
        if (llama_model_is_on_disk(model.raw, il)) {
            res.push_back(il);
        }
    }
    return res;
}

// bytes that are mapped, and those of them in memory
static std::pair<uint64_t, uint64_t> disk_memory(const py_model & model) {
    return { llama_skip_disk_mapped(model.raw), llama_skip_disk_resident(model.raw) };
}

static void standby(const py_model & model) {
    model.check_process();
    const without_gil nogil;
    llama_skip_standby(model.raw);
}

void register_model(py::module_ & m) {
    using M = py_model;

    py::class_<M, std::shared_ptr<M>> cls(m, "Model");
    cls.def(py::init<const std::string &, const py_model_params &>(), py::arg("path"), py::arg("params"))
        .def_property_readonly("n_layer", [](const M & s) { return llama_model_n_layer(s.raw); })
        .def_property_readonly("n_vocab", [](const M & s) { return llama_vocab_n_tokens(s.vocab()); })
        .def_property_readonly("n_embd", [](const M & s) { return llama_model_n_embd(s.raw); })
        .def_property_readonly("n_ctx_train", [](const M & s) { return llama_model_n_ctx_train(s.raw); })
        .def_property_readonly("is_recurrent", [](const M & s) { return s.is_recurrent(); })
        .def("check_process", &M::check_process)
        .def_property_readonly("weights_id", [](const M & s) { return llama_skip_weights_id(*s.raw); })
        .def_property_readonly("metadata", metadata)
        .def_property_readonly("skip_layers", [](const M & s) { return std::string(llama_model_skip_layers(s.raw)); })
        .def_property_readonly("skip_scale", [](const M & s) { return std::string(llama_model_skip_scale(s.raw)); })
        .def_property_readonly("disk_layers", disk_layers)
        .def_property_readonly("disk_scale", [](const M & s) { return std::string(llama_model_disk_scale(s.raw)); })
        .def_property_readonly("disk_memory", disk_memory)
        .def("standby", standby);
    register_vocab(cls);
}
