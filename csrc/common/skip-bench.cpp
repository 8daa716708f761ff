// The flags in llama-bench, which has a parser of its own.

#include "skip-args.h"

#include <cstdio>
#include <cstdlib>

void common_skip_bench_arg(
    const std::string & arg, const std::string & value, std::vector<std::string> & layers, std::string & scale) {
    const bool is_layers = arg == "--skip-layers";
    common_skip_not_empty(arg.c_str(), value);
    if (!llama_skip_check(
            "", is_layers ? value.c_str() : "", is_layers ? "" : value.c_str(), arg.c_str(), arg.c_str())) {
        fprintf(stderr, "error: %s\n", llama_skip_error());
        exit(1);
    }
    if (is_layers) {
        layers.push_back(value);
    } else {
        scale = value;
    }
}

bool common_skip_bench_check(const std::string & path, const std::string & layers, const std::string & scale) {
    if (layers == "none" ||
        llama_skip_check_flags(path.c_str(), common_skip_overrides(layers, scale), "--skip-layers", "--skip-scale")) {
        return true;
    }
    fprintf(stderr, "error: %s\n", llama_skip_error());
    return false;
}

void common_skip_bench_loaded(const llama_model * model) {
    if (llama_model_n_skipped(model) > 0) {
        fprintf(stderr, "%s\n", llama_model_skip_summary(model));
    }
}
