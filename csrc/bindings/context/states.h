#pragma once

#include "bindings/context/decoder.h"

// the methods about what a context gives beside logits: hidden states of its blocks, and embeddings of texts
void register_context_states(py::class_<py_context> & c);
