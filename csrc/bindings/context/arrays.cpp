#include "bindings/context/arrays.h"

std::vector<llama_token> check_tokens(const py_context & ctx, const tokens_array & tokens) {
    if (tokens.ndim() != 1 || tokens.size() == 0) {
        throw std::invalid_argument("tokens: expected a list of one token or more");
    }
    if (!ctx.model->has_weights) {
        throw std::runtime_error("a model loaded without weights cannot decode");
    }
    std::vector<llama_token> res;
    res.reserve(tokens.size());
    for (py::ssize_t i = 0; i < tokens.size(); ++i) {
        ctx.model->check_token(tokens.data()[i]);
        res.push_back((llama_token) tokens.data()[i]);
    }
    return res;
}

py::array_t<float> logits_rows(const py_context & ctx, size_t n_tokens, int32_t first) {
    if (first < 0 || (size_t) first > n_tokens) {
        throw std::invalid_argument("first: " + std::to_string(first) + " is not within 0-" + std::to_string(n_tokens));
    }
    return py::array_t<float>(
        { (py::ssize_t)(n_tokens - first), (py::ssize_t) llama_vocab_n_tokens(ctx.model->vocab()) });
}
