#pragma once

#include "bindings/bindings.h"

#include "llama.h"

struct py_context_params {
    llama_context_params raw = llama_context_default_params();

    bool hidden_states = false;
};

void register_context_params(py::module_ & m);
