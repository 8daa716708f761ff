#pragma once

#include "bindings/bindings.h"

#include "sampling.h"

struct py_sampler_params {
    common_params_sampling raw;
};

void register_sampler_params(py::module_ & m);
