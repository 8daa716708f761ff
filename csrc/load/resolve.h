#pragma once

// What is left out of a model, as sets and plans say it, and the line about it.

#include "plan/plan.h"
#include "set/overrides.h"
#include "set/skip.h"

struct llama_hparams;
struct llama_model;

// what is left out, with the owner of its bypasses, null where there are none
struct llama_skip_set {
    llama_skip                           skip;
    std::shared_ptr<llama_skip_bypasses> bypasses;
};

// Puts what the plan of a spec says in its place. Throws std::invalid_argument.
llama_skip_plan llama_skip_look_up(
    llama_model_loader & ml, const llama_hparams & hparams, llama_skip_spec & spec, llama_skip_names & names);

// What `spec` leaves out of the model that the loader has read the hyperparameters of; looks up its plan. Throws
// std::invalid_argument.
llama_skip_set llama_skip_resolve(
    llama_model_loader & ml, llama_model & model, const llama_skip_spec & spec, const llama_skip_names & names);

// the line about a plan of other weights
extern const char * const llama_skip_other_weights;

// one line for the log: which blocks and halves, how many blocks are kept, what was not loaded; a second one about a
// plan of other weights
std::string llama_skip_summary(const llama_skip & skip, const llama_hparams & hparams);
