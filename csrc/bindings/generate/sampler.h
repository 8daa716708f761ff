#pragma once

#include "bindings/bindings.h"

void register_sampler(py::module_ & m);
