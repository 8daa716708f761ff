#include "common/bench.h"

#include "llama-skip.h"

#include "common/flags.h"
#include "set/overrides.h"

#include "arg.h"

#include <map>

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

const llama_model_kv_override * common_skip_overrides(const std::string & layers, const std::string & scale) {
    const auto & disk    = common_skip_bench_disk();
    const bool   is_none = layers.empty() || layers == "none";
    if (is_none && disk.layers.empty() && disk.scale.empty()) {
        return nullptr;
    }
    static std::map<std::vector<std::string>, std::vector<llama_model_kv_override>> known;

    auto & overrides = known[{ layers, scale, disk.layers, disk.scale }];
    if (overrides.empty()) {
        common_skip_add_flag(overrides, "", {}, llama_skip_key_of(layers), is_none ? "" : layers);
        common_skip_add_flag(overrides, "", {}, LLAMA_SKIP_KEY_SCALE, scale);
        common_skip_add_flag(overrides, "", {}, LLAMA_SKIP_KEY_DISK, disk.layers);
        common_skip_add_flag(overrides, "", {}, LLAMA_SKIP_KEY_DISK_SCALE, disk.scale);
        // llama-bench has no flag for it
        const char * untested = getenv("LLAMA_ARG_SKIP_UNTESTED");
        if (untested != nullptr && common_arg_utils::is_truthy(untested)) {
            common_skip_add_true(overrides, LLAMA_SKIP_KEY_UNTESTED);
        }
        overrides.emplace_back();
        overrides.back().key[0] = 0;
    }
    return overrides.data();
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
