#pragma once

// Sets that a measurement or a file chooses, looked up when a model is loaded.
//   PLAN := auto:P% | auto:K | @NAME | @PATH     (a path has a dot or a slash, a name has neither)
// "auto" is the beginning of the greedy path in the metadata (skip.score.*), a name is a plan there (skip.plan.NAME.*);
// both in the model's file, else in the one beside it, MODEL.skip.gguf. A path is a plan file, of JSON or a GGUF with
// the tensors of its bypasses. docs/metadata.md has the formats.

#include "llama.h"

#include <memory>
#include <set>
#include <string>

class llama_skip_bypasses;
struct llama_hparams;
struct llama_model_loader;

struct llama_skip_plan {
    std::string layers; // as for --skip-layers
    std::string scale;  // as for --skip-scale, empty: none
    std::string origin; // for the log

    std::string disk_layers; // as for --disk-layers, empty: none
    std::string disk_scale;

    bool other_weights = false; // made with another file of the same model

    std::shared_ptr<llama_skip_bypasses> bypasses; // null: none
};

// Both throw std::invalid_argument with a message that starts with `name`; the first needs no file.
void llama_skip_check_plan(const std::string & name, const std::string & text);

llama_skip_plan llama_skip_find_plan(
    const std::string & name, const std::string & text, llama_model_loader & ml, const llama_hparams & hparams);

// The names of the plans in a model's file and beside it, as far as they can be read.
LLAMA_API std::set<std::string> llama_skip_plan_names(const std::string & path_model);
