#include "bindings/model/vocab.h"

#include "common.h"

#include <pybind11/stl.h>

static std::vector<llama_token> tokenize(const py_model & model, const std::string & text, bool special, bool parse) {
    py::gil_scoped_release nogil;
    return common_tokenize(model.vocab(), text, special, parse);
}

static py::bytes detokenize(const py_model & model, const std::vector<llama_token> & tokens, bool special) {
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
