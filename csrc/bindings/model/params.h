#pragma once

#include "bindings/log-scope.h"

#include "llama.h"

#include <string>
#include <vector>

struct py_model_params {
    llama_model_params raw = llama_model_default_params();

    bool                     default_devices = true;
    std::vector<std::string> devices;
    std::vector<std::string> rpc_servers;
    std::vector<float>       tensor_split;
    std::string              skip_layers; // empty: not given
    std::string              skip_scale;
    std::string              disk_layers;
    std::string              disk_scale;
    py::object               progress = py::none();
    py_log                   log;

    std::vector<llama_model_kv_override> overrides; // without the terminating one
};

void register_model_params(py::module_ & m);
