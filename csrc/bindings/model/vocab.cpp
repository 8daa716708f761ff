#include "bindings/model/vocab.h"

#include "bindings/threads/deep-stack.h"
#include "bindings/threads/gil.h"

#include "common.h"

#include <pybind11/stl.h>

#include <algorithm>

// upstream's regular expressions recurse over words
static const size_t n_bytes_short = 4096;
static const size_t n_stack_byte  = 2048;
static const size_t n_stack_max   = (size_t) 1 << (sizeof(size_t) > 4 ? 36 : 28);

static void check_vocab(const py_model & model) {
    if (llama_vocab_type(model.vocab()) == LLAMA_VOCAB_TYPE_NONE) {
        throw std::invalid_argument("this model has no vocabulary");
    }
}

static std::vector<llama_token> tokenize(const py_model & model, const std::string & text, bool special, bool parse) {
    check_vocab(model);
    const without_gil nogil;
    log_scope         log(model.log);

    std::vector<llama_token> res;
    const auto               call = [&]() {
        res = common_tokenize(model.vocab(), text, special, parse);
    };
    if (text.size() < n_bytes_short) {
        call();
    } else {
        on_deep_stack(std::min<size_t>(n_stack_byte * text.size(), n_stack_max), call);
    }
    return res;
}

static py::bytes detokenize(const py_model & model, const std::vector<llama_token> & tokens, bool special) {
    check_vocab(model);
    log_scope   log(model.log);
    std::string res;
    for (const llama_token token : tokens) {
        model.check_token(token);
        res += common_token_to_piece(model.vocab(), token, special);
    }
    return py::bytes(res);
}

void register_vocab(py::class_<py_model, std::shared_ptr<py_model>> & c) {
    using M = py_model;

    c.def_property_readonly("bos", [](const M & s) { return llama_vocab_bos(s.vocab()); })
        .def_property_readonly("eos", [](const M & s) { return llama_vocab_eos(s.vocab()); })
        .def_property_readonly("nl", [](const M & s) { return llama_vocab_nl(s.vocab()); })
        .def_property_readonly("fim",
            [](const M & s) {
                return py::make_tuple(
                    llama_vocab_fim_pre(s.vocab()), llama_vocab_fim_suf(s.vocab()), llama_vocab_fim_mid(s.vocab()));
            })
        .def_property_readonly("add_bos", [](const M & s) { return llama_vocab_get_add_bos(s.vocab()); })
        .def_property_readonly("add_eos", [](const M & s) { return llama_vocab_get_add_eos(s.vocab()); })
        .def(
            "is_eog", [](const M & s, llama_token token) { return llama_vocab_is_eog(s.vocab(), token); },
            py::arg("token"))
        .def("tokenize", tokenize, py::arg("text"), py::arg("add_special"), py::arg("parse_special"))
        .def("detokenize", detokenize, py::arg("tokens"), py::arg("special"));
}
