#pragma once

#include "set/overrides.h"

#include "llama-arch.h"

struct llama_hparams;

// how messages name the two values
struct llama_skip_names {
    std::string layers = LLAMA_SKIP_KEY_LAYERS;
    std::string scale  = LLAMA_SKIP_KEY_SCALE;

    std::string disk       = LLAMA_SKIP_KEY_DISK;
    std::string disk_scale = LLAMA_SKIP_KEY_DISK_SCALE;
    std::string disk_idle  = LLAMA_SKIP_KEY_DISK_IDLE;
};

// the names of all values, in the style of those two: flags, arguments in Python or overrides
llama_skip_names llama_skip_names_for(const std::string & layers, const std::string & scale);

// What `spec` leaves out of a model with these hyperparameters; throws std::invalid_argument.
llama_skip llama_skip_make(
    const llama_hparams & hparams, llm_arch arch, const llama_skip_spec & spec, const llama_skip_names & names);

// what holds for blocks of the file, in every loop of a looped model
llama_skip_mask llama_skip_every_loop(const llama_skip_mask & file_blocks, int32_t n_file, int32_t n_loop);
