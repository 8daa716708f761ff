#pragma once

#include "load/resolve.h"

struct llama_model;

// What llama_skip_set_mask() leaves out of a loaded model, the model's set among it, with the bypasses of a plan in
// memory. Both texts may be null. Throws std::invalid_argument, std::runtime_error for what cannot be read or
// allocated.
llama_skip_set llama_skip_make_mask(const llama_model & model, const char * layers, const char * scale);
