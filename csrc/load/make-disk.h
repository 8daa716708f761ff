#pragma once

// Which blocks stay on disk, as overrides and plans say it.

#include "set/overrides.h"
#include "set/skip.h"

#include "llama-arch.h"

struct llama_hparams;

// Sets skip.disk from `spec`; a block whose S is 0 joins skip.out instead. Throws std::invalid_argument.
void llama_skip_disk_make(const llama_hparams & hparams, llm_arch arch, const llama_skip_spec & spec,
    const llama_skip_names & names, llama_skip & skip);

// the grammar alone, which needs no model
void llama_skip_disk_parse(const llama_skip_spec & spec, const llama_skip_names & names);

// one line for the log; empty without disk blocks
std::string llama_skip_disk_summary(const llama_skip & skip, int32_t n_layer);
