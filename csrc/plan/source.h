#pragma once

// A file's metadata about scores and plans, checked against the model that they are to be used with.
// All functions throw std::runtime_error.

#include "plan/identity.h"

#include <string>
#include <vector>

struct gguf_context;

struct llama_skip_source {
    const gguf_context * meta;
    std::string          where; // for messages
};

// the first one that has what is asked for counts
using llama_skip_sources = std::vector<llama_skip_source>;

// what: for messages; most: the newest version that this build reads
void llama_skip_check_version(int64_t version, int64_t most, const std::string & what);

// whether it was made with other weights
bool llama_skip_check_model(const llama_skip_identity & model, const std::string & model_id,
    const std::string & file_id, const std::string & what);

std::string llama_skip_need_str(const llama_skip_source & source, const std::string & key);

// What skip.score or skip.plan.NAME begins with.
struct llama_skip_plan_header {
    int64_t version;
    bool    other_weights;
};

llama_skip_plan_header llama_skip_check_header(const llama_skip_source & source, const std::string & prefix,
    int64_t most_version, const llama_skip_identity & model);

// ", KL divergence 0.25", empty where it is not known
std::string llama_skip_cost_str(float kld);
