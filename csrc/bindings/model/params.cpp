#include "bindings/model/params.h"

#include "set/overrides.h"

#include <pybind11/stl.h>

#include <cstring>
#include <optional>
#include <variant>

using override_value = std::variant<bool, int64_t, double, std::string>;

static void add_override(py_model_params & params, const std::string & key, const override_value & value) {
    llama_model_kv_override o = {};

    if (key.empty() || key.size() >= sizeof(o.key)) {
        throw std::invalid_argument(
            "kv_overrides: the key '" + key + "' has to have 1 to " + std::to_string(sizeof(o.key) - 1) + " bytes");
    }
    if (const auto * text = std::get_if<std::string>(&value)) {
        if (text->size() >= sizeof(o.val_str) && !llama_skip_is_override(key)) {
            throw std::invalid_argument("kv_overrides: the value of '" + key + "' is longer than " +
                                        std::to_string(sizeof(o.val_str) - 1) + " bytes");
        }
        llama_skip_add_override(params.overrides, key, *text);
        return;
    }
    std::memcpy(o.key, key.data(), key.size());
    if (const auto * flag = std::get_if<bool>(&value)) {
        o.tag      = LLAMA_KV_OVERRIDE_TYPE_BOOL;
        o.val_bool = *flag;
    } else if (const auto * number = std::get_if<int64_t>(&value)) {
        o.tag     = LLAMA_KV_OVERRIDE_TYPE_INT;
        o.val_i64 = *number;
    } else {
        o.tag     = LLAMA_KV_OVERRIDE_TYPE_FLOAT;
        o.val_f64 = std::get<double>(value);
    }
    params.overrides.push_back(o);
}

static void set_load_mode(py_model_params & params, const std::string & name) {
    for (int mode = LLAMA_LOAD_MODE_AUTO; mode <= LLAMA_LOAD_MODE_DIRECT_IO; ++mode) {
        if (name == llama_load_mode_name((llama_load_mode) mode)) {
            params.raw.load_mode = (llama_load_mode) mode;
            return;
        }
    }
    throw std::invalid_argument("load_mode: '" + name + "' is not one of auto, none, mmap, mlock, mmap+mlock, dio");
}

static void set_devices(py_model_params & params, const std::optional<std::vector<std::string>> & names) {
    params.default_devices = !names.has_value();
    params.devices         = names.value_or(std::vector<std::string>());
}

void register_model_params(py::module_ & m) {
    using P = py_model_params;

    py::class_<P>(m, "ModelParams")
        .def(py::init<>())
        .RAW_FIELD(P, int32_t, n_gpu_layers)
        .RAW_ENUM(P, split_mode, LLAMA_SPLIT_MODE_NONE, LLAMA_SPLIT_MODE_TENSOR)
        .RAW_FIELD(P, int32_t, main_gpu)
        .RAW_FIELD(P, bool, vocab_only)
        .RAW_FIELD(P, bool, check_tensors)
        .RAW_FIELD(P, bool, no_alloc)
        .RAW_FIELD(P, bool, use_extra_bufts)
        .def_property(
            "load_mode", [](const P & p) { return std::string(llama_load_mode_name(p.raw.load_mode)); }, set_load_mode)
        .def_property(
            "devices", [](const P & p) { return p.devices; }, set_devices)
        .def_readwrite("rpc_servers", &P::rpc_servers)
        .def_readwrite("tensor_split", &P::tensor_split)
        .def_readwrite("skip_layers", &P::skip_layers)
        .def_readwrite("skip_scale", &P::skip_scale)
        .def_readwrite("disk_layers", &P::disk_layers)
        .def_readwrite("disk_scale", &P::disk_scale)
        .def_readwrite("progress", &P::progress)
        .def_property(
            "verbose", [](const P & p) { return p.log.verbose; }, [](P & p, bool v) { p.log.verbose = v; })
        .def_property(
            "log", [](const P & p) { return p.log.callback; },
            [](P & p, py::object f) { p.log.callback = std::move(f); })
        .def("add_override", add_override, py::arg("key"), py::arg("value"));
}
