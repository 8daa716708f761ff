#pragma once

// @NAME: a plan in a model's metadata (skip.plan.NAME.*).

#include "plan/plan.h"
#include "plan/source.h"

#include <set>

std::set<std::string> llama_skip_plan_names(const llama_skip_sources & sources);

// Throws std::runtime_error.
llama_skip_plan llama_skip_read_named(
    const llama_skip_sources & sources, const llama_skip_identity & model, const std::string & name);
