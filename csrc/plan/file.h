#pragma once

// @PATH: a plan file, of JSON or a GGUF with the tensors of its bypasses.

#include "plan/identity.h"
#include "plan/plan.h"

// A plan for a model whose residual stream has the width n_embd. Throws std::runtime_error.
llama_skip_plan llama_skip_read_plan_file(const std::string & path, const llama_skip_identity & model, int64_t n_embd);
