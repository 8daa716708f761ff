#pragma once

#include "llama.h"

#include <cstdint>

struct llama_model;
struct llama_model_loader;

// What the model says about its blocks whatever is left out of it: hparams.skip.model.
void llama_skip_read_model(llama_model_loader & ml, llama_model & model);

// What a model can do, where upstream asserts it: positions that it has learned (0: any number), and whether it ranks.
LLAMA_API int32_t llama_skip_n_positions(const llama_model & model);
LLAMA_API bool    llama_skip_can_rank(const llama_model & model);
