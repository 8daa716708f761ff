#pragma once

#include "bindings/bindings.h"

// versions, devices and checks of the library
void register_system(py::module_ & m);
