#pragma once

#include "bindings/bindings.h"

void register_identity(py::module_ & m);
