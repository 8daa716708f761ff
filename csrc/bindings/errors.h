#pragma once

#include "bindings/bindings.h"

// becomes llama_skip.errors.ModelLoadError
struct model_load_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

void register_errors(py::module_ & m);
