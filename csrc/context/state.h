#pragma once

#include <string>

struct llama_skip;

// What a saved state has to agree with beside the model's file, empty when nothing is left out: upstream's states then
// stay as they are.
std::string llama_skip_make_tag(const llama_skip & loaded, const llama_skip & skip);
