#pragma once

#include "bindings/model/model.h"

// the methods about tokens
void register_vocab(py::class_<py_model, std::shared_ptr<py_model>> & c);
