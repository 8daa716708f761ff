#pragma once

#include "bindings.h"

#include "llama.h"

#include <memory>
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
    py::object               progress = py::none();
    bool                     verbose  = false;

    std::vector<llama_model_kv_override> overrides; // without the terminating one
};

class py_model {
public:
    py_model(const std::string & path, const py_model_params & params);
    ~py_model();

    py_model(const py_model &)             = delete;
    py_model & operator=(const py_model &) = delete;

    const llama_vocab * vocab() const { return llama_model_get_vocab(raw); }

    // throws std::invalid_argument
    void check_token(int64_t token) const;

    llama_model * raw = nullptr;

    bool verbose;
    bool has_weights; // neither a dry run nor a vocabulary alone
};
