#pragma once

// auto:P%, auto:K: the beginning of the greedy path in a model's metadata (skip.score.*).

#include "plan/plan.h"
#include "plan/source.h"

#include <cstddef>

// What is asked for: a number of blocks, or a share of what all take, and that in blocks, rounded down.
struct llama_skip_part {
    size_t n_blocks;
    double share;
};

// Throws std::runtime_error.
llama_skip_plan llama_skip_read_path(
    const llama_skip_sources & sources, const llama_skip_identity & model, llama_skip_part part, int32_t n_layer);
