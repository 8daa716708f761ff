#pragma once

#include "bindings/bindings.h"

// the class Model
void register_model(py::module_ & m);
