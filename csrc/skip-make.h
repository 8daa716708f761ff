#pragma once

#include "skip-overrides.h"

#include "llama-arch.h"

struct llama_hparams;

// how messages name the two values
struct llama_skip_names {
    std::string layers = LLAMA_SKIP_KEY_LAYERS;
    std::string scale  = LLAMA_SKIP_KEY_SCALE;
};

// What `spec` leaves out of a model with these hyperparameters; throws std::invalid_argument.
llama_skip llama_skip_make(
    const llama_hparams & hparams, llm_arch arch, const llama_skip_spec & spec, const llama_skip_names & names);
