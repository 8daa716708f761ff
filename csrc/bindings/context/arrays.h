#pragma once

// Arrays that Python gives and gets.

#include "bindings/context/decoder.h"

#include <pybind11/numpy.h>

// tokens given by Python; throws std::invalid_argument
using tokens_array = py::array_t<int64_t, py::array::c_style>;
std::vector<llama_token> check_tokens(const py_context & ctx, const tokens_array & tokens);

// [n_tokens - first, n_vocab]; throws std::invalid_argument where `first` is not within 0 to n_tokens
py::array_t<float> logits_rows(const py_context & ctx, size_t n_tokens, int32_t first);
