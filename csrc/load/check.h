#pragma once

// What would be left out of a file that is not loaded: read as far as its hyperparameters.

#include "load/resolve.h"

// nothing when the hyperparameters cannot be read
struct llama_skip_checked_file : llama_skip_set {
    llama_skip_checked_file();
    llama_skip_checked_file(llama_skip_checked_file && other);
    ~llama_skip_checked_file();

    std::unique_ptr<llama_model> model; // hyperparameters only
};

// Throws std::invalid_argument where `spec` is refused.
llama_skip_checked_file llama_skip_check_file(
    const char * path_model, const llama_skip_spec & spec, const llama_skip_names & names);

// The bytes of the tensors that a plan puts into its gaps, 0 where it has none or is refused.
LLAMA_API size_t llama_skip_plan_bytes(const std::string & path_model, const std::string & layers);

// The blocks that a plan leaves out or keeps on disk; the last answer of this thread is kept until it is forgotten.
llama_skip_mask llama_skip_plan_blocks(const std::string & path_model, const llama_skip_spec & spec);
void            llama_skip_forget_plan();

// Why one of a control vector's directions has no place in a graph of the file; empty as well when it cannot be read.
LLAMA_API std::string llama_skip_cvec_refusal(
    const char * path_model, const llama_model_kv_override * overrides, int32_t il_start, int32_t il_end);
