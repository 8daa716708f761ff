#pragma once

#include "bindings/bindings.h"

// the class Context
void register_context(py::module_ & m);
