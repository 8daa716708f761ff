#pragma once

#include "bindings/bindings.h"

// the class that reads an answer
void register_chat_parser(py::module_ & m);
