#pragma once

// --skip-layers, --skip-scale, --skip-untested, --skip-layers-draft and the flags of disk blocks in the programs that parse their arguments with
// common/arg.cpp.

#include "llama-skip.h"

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

struct common_arg;
struct common_params;
struct common_params_speculative_draft;

void common_skip_add_args(const std::function<void(common_arg)> & add_opt);

// Turns the flags into overrides and lets -ncmoe and -ncffn count kept blocks; once, when everything is parsed and before the
// overrides are terminated. Throws std::invalid_argument.
void common_skip_finish(common_params & params);

// The last check before a model is loaded, for a path that was not known when the arguments were parsed.
bool common_skip_check(const common_params & params);

// The line about the set, where the log's threshold swallowed the one of the loader.
void common_skip_loaded(const llama_model * model);

// The same for a program that only measures.
void common_skip_describe(const common_params & params);

// A draft model gets its own set instead of the target's.
void common_skip_to_draft(common_params & params, const common_params_speculative_draft & draft);

// Marks a pattern as made by -ncmoe or -ncffn, for the kept block number that it names.
void common_skip_note_pattern(const char * pattern);

// Overrides for one set and what common_skip_bench_disk() says, kept until the program ends; null where both are none.
const llama_model_kv_override * common_skip_overrides(const std::string & layers, const std::string & scale);

// {"layers": ..., "scale": ..., "bypass": ..., "n_layer": ..., "n_layer_kept": ..., "bytes_not_loaded": ..., "disk_layers": ..., ...} each
// time it is called, with the memory of that moment
std::function<std::string(bool is_sleeping)> common_skip_props(const llama_model * model);

// An empty value would otherwise look like a flag that was not given: exits.
const std::string & common_skip_not_empty(const char * flag, const std::string & value);

//
// llama-bench, which has its own parser
//

// --disk-layers and --disk-scale, the same for every set
struct common_skip_disk {
    std::string layers;
    std::string scale;
};

common_skip_disk & common_skip_bench_disk();

// --skip-layers adds a set, --skip-scale sets the scale of all sets; exits where the grammar refuses the value
void common_skip_bench_arg(
    const std::string & arg, const std::string & value, std::vector<std::string> & layers, std::string & scale);

// says what is wrong with a set before its model is loaded
bool common_skip_bench_check(const std::string & path, const std::string & layers, const std::string & scale);

// the line about the set, which llama-bench's quiet log swallows
void common_skip_bench_loaded(const llama_model * model);

// every instance with every set
template <typename T>
std::vector<T> common_skip_bench_sweep(
    const std::vector<T> & instances, const std::vector<std::string> & layers, const std::string & scale) {
    if (layers.empty()) {
        if (!scale.empty()) {
            fprintf(stderr, "error: --skip-scale: no block is left out, so there is no gap to scale\n");
            exit(1);
        }
        return instances;
    }
    std::vector<T> res;
    for (const auto & set : layers) {
        for (T inst : instances) {
            inst.skip_layers = set;
            inst.skip_scale  = set == "none" ? "" : scale;
            res.push_back(inst);
        }
    }
    return res;
}
