#include "common/disk-args.h"

#include "llama-skip.h"

#include "common/flags.h"
#include "set/overrides.h"

#include "arg.h"
#include "common.h"

#include <stdexcept>

void common_skip_disk_add_args(const std::function<void(common_arg)> & add_opt) {
    add_opt(common_arg({ "--disk-layers" }, "SPEC",
        "blocks that stay in the file: mapped, run on the host, on no device and in no memory of their own\n"
        "(default: none; SPEC: none or ITEM[,ITEM...] as for --skip-layers)",
        [](common_params & params, const std::string & value) {
            params.disk_layers = common_skip_not_empty("--disk-layers", value);
        }).set_env("LLAMA_ARG_DISK_LAYERS"));
    add_opt(common_arg({ "--disk-scale" }, "SPEC",
        "the output of a disk block is x + S*(f(x) - x): S for all of them, or N:S,... for block N (default: 1, the "
        "whole block; 0 leaves it out)",
        [](common_params & params, const std::string & value) {
            params.disk_scale = common_skip_not_empty("--disk-scale", value);
        }).set_env("LLAMA_ARG_DISK_SCALE"));
    add_opt(common_arg({ "--disk-strict" },
        "hand back the memory of each disk block when it has run, for machines that cannot hold all of them",
        [](common_params & params) {
            params.disk_strict = true;
        }).set_env("LLAMA_ARG_DISK_STRICT"));
    add_opt(common_arg({ "--disk-idle" }, "SECONDS",
        "hand back the memory of all disk blocks after this time without work (default: 0, never)",
        [](common_params & params, const std::string & value) {
            params.disk_idle = common_skip_not_empty("--disk-idle", value);
        }).set_env("LLAMA_ARG_DISK_IDLE"));
}

void common_skip_disk_check(const common_params & params) {
    if (!llama_skip_check_disk(params.disk_layers.c_str(), params.disk_scale.c_str(), params.disk_idle.c_str())) {
        throw std::invalid_argument(string_format("error: %s", llama_skip_error()));
    }
}

void common_skip_disk_finish(common_params & params) {
    auto & overrides = params.kv_overrides;
    common_skip_add_flag(overrides, "--disk-layers", { LLAMA_SKIP_KEY_DISK }, LLAMA_SKIP_KEY_DISK, params.disk_layers);
    common_skip_add_flag(
        overrides, "--disk-scale", { LLAMA_SKIP_KEY_DISK_SCALE }, LLAMA_SKIP_KEY_DISK_SCALE, params.disk_scale);
    common_skip_add_flag(
        overrides, "--disk-idle", { LLAMA_SKIP_KEY_DISK_IDLE }, LLAMA_SKIP_KEY_DISK_IDLE, params.disk_idle);
    if (params.disk_strict) {
        common_skip_add_true(overrides, LLAMA_SKIP_KEY_DISK_STRICT);
    }
}
