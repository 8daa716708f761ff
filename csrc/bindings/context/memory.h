#pragma once

#include "bindings/context/decoder.h"

// the methods about what a context remembers: tokens per sequence, states, and bytes per device
void register_context_memory(py::class_<py_context> & c);
