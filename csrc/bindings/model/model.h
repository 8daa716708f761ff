#pragma once

#include "bindings/errors.h"
#include "bindings/model/params.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

class py_model {
public:
    py_model(const std::string & path, const py_model_params & params);
    ~py_model();

    py_model(const py_model &)             = delete;
    py_model & operator=(const py_model &) = delete;

    const llama_vocab * vocab() const { return llama_model_get_vocab(raw); }

    // whether a sequence has a state that stands at its last position, all of it or a part
    bool is_recurrent() const { return llama_model_is_recurrent(raw) || llama_model_is_hybrid(raw); }

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

// the text that one of the functions llama_model_*(..., buf, size) gives
std::string read_text(const std::function<int32_t(char *, size_t)> & f);

// throws FileNotFoundError
void check_exists(const std::string & path);
