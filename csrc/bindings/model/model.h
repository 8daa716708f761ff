#pragma once

#include "bindings/log-scope.h"

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
    std::string              disk_layers;
    std::string              disk_scale;
    py::object               progress = py::none();
    py_log                   log;

    std::vector<llama_model_kv_override> overrides; // without the terminating one
};

class py_model {
public:
    py_model(const std::string & path, const py_model_params & params);
    ~py_model();

    py_model(const py_model &)             = delete;
    py_model & operator=(const py_model &) = delete;

    const llama_vocab * vocab() const { return llama_model_get_vocab(raw); }

    std::string arch() const;

    // throws std::invalid_argument
    void check_token(int64_t token) const;

    llama_model * raw = nullptr;

    // the one token that a text is, or LLAMA_TOKEN_NULL
    llama_token single_token(const std::string & text) const;

    // whether this process was forked from the one that loaded the model; the second throws std::runtime_error then
    bool is_foreign() const;
    void check_process() const;

    const py_log  log;
    const bool    has_weights; // neither a dry run nor a vocabulary alone
    const int64_t pid;         // of the process that loaded it
};

// throws FileNotFoundError
void check_exists(const std::string & path);

// the methods about tokens, in vocab.cpp
void register_vocab(py::class_<py_model, std::shared_ptr<py_model>> & c);
