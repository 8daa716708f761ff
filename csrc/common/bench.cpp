// The flags in llama-bench, which has a parser of its own.

#include "common/args.h"

#include <cstdio>
#include <cstdlib>

common_skip_disk & common_skip_bench_disk() {
    static common_skip_disk disk;
    return disk;
}

void common_skip_bench_arg(
    const std::string & arg, const std::string & value, std::vector<std::string> & layers, std::string & scale) {
    if (arg == "--disk-layers" || arg == "--disk-scale") {
        auto & disk                                         = common_skip_bench_disk();
        (arg == "--disk-layers" ? disk.layers : disk.scale) = common_skip_not_empty(arg.c_str(), value);
        if (!llama_skip_check_disk(disk.layers.c_str(), disk.scale.c_str(), "")) {
            fprintf(stderr, "error: %s\n", llama_skip_error());
            exit(1);
        }
        return;
    }
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
    const auto * overrides = common_skip_overrides(layers, scale);
    if (overrides == nullptr || llama_skip_check_flags(path.c_str(), overrides, "--skip-layers", "--skip-scale")) {
        return true;
    }
    fprintf(stderr, "error: %s\n", llama_skip_error());
    return false;
}

void common_skip_bench_loaded(const llama_model * model) {
    const std::string text = llama_model_skip_summary(model);
    if (!text.empty()) {
        fprintf(stderr, "%s\n", text.c_str());
    }
}
