#pragma once

#include "bindings/context/decoder.h"

// the class Lora, and the method of a context that uses one
void register_lora(py::module_ & m, py::class_<py_context> & context);
