#pragma once

#include "llama.h"

#include <string>

struct llama_model;
struct llama_skip;

// What a saved state has to agree with beside the model's file, empty when nothing is left out: upstream's states then
// stay as they are.
std::string llama_skip_make_tag(const llama_skip & loaded, const llama_skip & skip);

// The same with what tells the file by its tensors: what stands at the beginning of a state.
std::string llama_skip_saved_tag(const llama_model & model, const llama_skip & skip);

// The tag in a file of llama_state_seq_save_file(), empty without one.
LLAMA_API std::string llama_skip_file_tag(const std::string & path);
