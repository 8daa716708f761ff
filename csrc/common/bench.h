#pragma once

// The flags in llama-bench, which has a parser of its own.

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

struct llama_model;
struct llama_model_kv_override;

// --disk-layers and --disk-scale, the same for every set
struct common_skip_disk {
    std::string layers;
    std::string scale;
};

common_skip_disk & common_skip_bench_disk();

// Overrides for one set and what common_skip_bench_disk() says, kept until the program ends; null where both are none.
const llama_model_kv_override * common_skip_overrides(const std::string & layers, const std::string & scale);

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
