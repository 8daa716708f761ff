#pragma once

#include "set/overrides.h"
#include "set/skip.h"

#include "llama-arch.h"

struct llama_hparams;

// What `spec` leaves out of a model with these hyperparameters; throws std::invalid_argument.
llama_skip llama_skip_make(
    const llama_hparams & hparams, llm_arch arch, const llama_skip_spec & spec, const llama_skip_names & names);
