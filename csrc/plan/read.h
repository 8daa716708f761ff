#pragma once

// What metadata and plan files hold (docs/metadata.md), checked against the model that it is to be used with.
// All functions throw std::runtime_error; llama_skip_plan.origin says where the plan was found, and its cost where
// known.

#include "plan/identity.h"
#include "plan/plan.h"

#include <cstddef>
#include <string>
#include <vector>

struct gguf_context;

struct llama_skip_source {
    const gguf_context * meta;
    std::string          where; // for messages
};

// the first one that has what is asked for counts
using llama_skip_sources = std::vector<llama_skip_source>;

// the first n_blocks of the greedy path
llama_skip_plan llama_skip_read_path(
    const llama_skip_sources & sources, const llama_skip_identity & model, size_t n_blocks, int32_t n_layer);

// a plan by its name
llama_skip_plan llama_skip_read_plan(
    const llama_skip_sources & sources, const llama_skip_identity & model, const std::string & name);

// a plan file for a model whose residual stream has the width n_embd
llama_skip_plan llama_skip_read_plan_file(const std::string & path, const llama_skip_identity & model, int64_t n_embd);
