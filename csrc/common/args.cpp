#include "common/args.h"

#include "llama-skip.h"

#include "common/disk-args.h"
#include "common/flags.h"
#include "common/props.h"
#include "tiers/args.h"
#include "load/check.h"
#include "set/overrides.h"

#include "arg.h"
#include "common.h"
#include "log.h"

#include <cstdio>
#include <limits>
#include <list>
#include <regex>
#include <set>
#include <stdexcept>

static const char * const spec_help =
    "SPEC: none or ITEM[,ITEM...], ITEM: N | N-M (inclusive) | N-M+STEP, with :attn or :ffn behind it for the "
    "attention "
    "or the feed-forward alone; blocks are numbered as in the file;\n"
    "or auto:P%, auto:K (the share or number of blocks that cost least, measured by llama-skip score), @NAME (a plan "
    "in "
    "the model's metadata or its .skip.gguf), @PATH (a plan file)";

void common_skip_add_args(const std::function<void(common_arg)> & add_opt) {
    add_opt(common_arg({ "--skip-layers" }, "SPEC",
        string_format("blocks (transformer layers) to leave out: not read, not uploaded, no KV cache, not computed "
                      "(default: none)\n%s",
            spec_help),
        [](common_params & params, const std::string & value) {
            params.skip_layers = common_skip_not_empty("--skip-layers", value);
        }).set_env("LLAMA_ARG_SKIP_LAYERS"));
    add_opt(common_arg({ "--skip-scale" }, "SPEC",
        "factor on the residual stream where blocks are left out (default: 1)\n"
        "SPEC: A for every gap, or N:A,... for the gap that begins at block N",
        [](common_params & params, const std::string & value) {
            params.skip_scale = common_skip_not_empty("--skip-scale", value);
        }).set_env("LLAMA_ARG_SKIP_SCALE"));
    add_opt(common_arg({ "--skip-untested" },
        "leave blocks out of architectures that were not tested for it too (default: refused)",
        [](common_params & params) {
            params.skip_untested = true;
        }).set_env("LLAMA_ARG_SKIP_UNTESTED"));
    add_opt(common_arg({ "--skip-layers-draft" }, "SPEC",
        "blocks to leave out of the draft model, as --skip-layers (default: none)",
        [](common_params & params, const std::string & value) {
            params.speculative.draft.skip_layers = common_skip_not_empty("--skip-layers-draft", value);
        })
                .set_spec()
                .set_env("LLAMA_ARG_SKIP_LAYERS_DRAFT"));
    common_skip_disk_add_args(add_opt);
    common_skip_tier_add_args(add_opt);
}

static std::vector<llama_model_kv_override> terminated(std::vector<llama_model_kv_override> overrides) {
    overrides.emplace_back();
    overrides.back().key[0] = 0;
    return overrides;
}

// the model whose set was checked when the arguments were parsed
static std::string & checked_model() {
    static std::string path;
    return path;
}

static void check_path(const std::string & path, const std::string & layers, const std::string & scale,
    const char * flag_layers, const char * flag_scale) {
    if (!llama_skip_check(path.c_str(), layers.c_str(), scale.c_str(), flag_layers, flag_scale)) {
        throw std::invalid_argument(string_format("error: %s", llama_skip_error()));
    }
}

static void check_overrides(const std::string & path, const std::vector<llama_model_kv_override> & overrides,
    const char * name_layers, const char * name_scale) {
    if (!llama_skip_check_flags(path.c_str(), terminated(overrides).data(), name_layers, name_scale)) {
        throw std::invalid_argument(string_format("error: %s", llama_skip_error()));
    }
}

// upstream's tools go on without a control vector that a context refuses
static void check_cvec(const common_params & params, const llama_model_kv_override * overrides) {
    if (params.control_vectors.empty()) {
        return;
    }
    const int32_t     last   = params.control_vector_layer_end;
    const std::string reason = llama_skip_cvec_refusal(params.model.path.c_str(), overrides,
        params.control_vector_layer_start, last > 0 ? last : std::numeric_limits<int32_t>::max());
    if (!reason.empty()) {
        throw std::invalid_argument(string_format("error: %s", reason.c_str()));
    }
}

//
// -ncmoe, -ncffn
//

static std::set<const char *> & ordinal_patterns() {
    static std::set<const char *> patterns;
    return patterns;
}

void common_skip_note_pattern(const char * pattern) {
    ordinal_patterns().insert(pattern);
}

// "blk\.N..." with N a kept block's number -> the same with its index in the file
static void place_patterns(std::vector<llama_model_tensor_buft_override> & bufts, const std::string & path_model,
    const std::vector<llama_model_kv_override> & overrides) {
    static std::list<std::string> placed; // patterns are borrowed pointers

    for (auto & o : bufts) {
        if (o.pattern == nullptr || ordinal_patterns().count(o.pattern) == 0) {
            continue;
        }
        static const std::regex number("^blk\\\\\\.([0-9]+)");

        std::cmatch m;
        if (std::regex_search(o.pattern, m, number)) {
            if (path_model.empty() && common_skip_has_override(overrides, LLAMA_SKIP_KEY_PLAN)) {
                throw std::invalid_argument(
                    "error: -ncmoe and -ncffn count the blocks that a plan keeps, so they need --model FILE");
            }
            const int il = llama_skip_layer_index(path_model.c_str(), overrides.data(), std::stoi(m[1]));
            placed.push_back(string_format("blk\\.%d%s", il, m.suffix().str().c_str()));
            o.pattern = placed.back().c_str();
        }
    }
}

// a draft model's own set beside what it inherits
static std::vector<llama_model_kv_override> draft_overrides(
    std::vector<llama_model_kv_override> overrides, const std::string & layers, bool untested) {
    if (!layers.empty()) {
        llama_skip_add_override(overrides, llama_skip_key_of(layers), layers);
        if (untested) {
            common_skip_add_true(overrides, LLAMA_SKIP_KEY_UNTESTED);
        }
    }
    return overrides;
}

void common_skip_finish(common_params & params) {
    const auto & draft = params.speculative.draft;

    // a value that the grammar refuses needs no model
    common_skip_disk_check(params);
    common_skip_tier_check(params.skip_tiers);
    check_path("", params.skip_layers, params.skip_scale, "--skip-layers", "--skip-scale");
    check_path("", draft.skip_layers, "", "--skip-layers-draft", "");

    const bool with_overrides = common_skip_has_override(params.kv_overrides, "skip.");
    common_skip_disk_finish(params);
    common_skip_add_flag(params.kv_overrides, "--skip-layers", { LLAMA_SKIP_KEY_LAYERS, LLAMA_SKIP_KEY_PLAN },
        llama_skip_key_of(params.skip_layers), params.skip_layers);
    common_skip_add_flag(
        params.kv_overrides, "--skip-scale", { LLAMA_SKIP_KEY_SCALE }, LLAMA_SKIP_KEY_SCALE, params.skip_scale);
    if (params.skip_untested) {
        common_skip_add_true(params.kv_overrides, LLAMA_SKIP_KEY_UNTESTED);
    }
    if (with_overrides) {
        check_overrides(params.model.path, params.kv_overrides, LLAMA_SKIP_KEY_LAYERS, LLAMA_SKIP_KEY_SCALE);
    } else {
        check_overrides(params.model.path, params.kv_overrides, "--skip-layers", "--skip-scale");
    }
    checked_model() = params.model.path;

    if (common_skip_has_override(params.kv_overrides, LLAMA_SKIP_KEY_LAYERS) ||
        common_skip_has_override(params.kv_overrides, LLAMA_SKIP_KEY_PLAN) ||
        common_skip_has_key(params.kv_overrides, LLAMA_SKIP_KEY_DISK)) {
        const auto overrides = terminated(params.kv_overrides);
        place_patterns(params.tensor_buft_overrides, params.model.path, overrides);
        check_cvec(params, overrides.data());
    }
    if (!draft.skip_layers.empty()) {
        const auto overrides = draft_overrides({}, draft.skip_layers, params.skip_untested);
        check_overrides(draft.mparams.path, overrides, "--skip-layers-draft", "");
        place_patterns(params.speculative.draft.tensor_buft_overrides, draft.mparams.path, terminated(overrides));
    }
}

bool common_skip_check(const common_params & params) {
    if (params.kv_overrides.empty() || params.model.path == checked_model() ||
        llama_skip_check_overrides(params.model.path.c_str(), params.kv_overrides.data())) {
        return true;
    }
    LOG_ERR("error: %s\n", llama_skip_error());
    return false;
}

void common_skip_loaded(const llama_model * model) {
    common_skip_props_loaded(model);
    const std::string text = llama_model_skip_summary(model);
    if (common_log_get_verbosity_thold() < LOG_LEVEL_WARN && !text.empty()) {
        fprintf(stderr, "\n%s\n", text.c_str());
    }
}

void common_skip_describe(const common_params & params) {
    const auto *      overrides = params.kv_overrides.empty() ? nullptr : params.kv_overrides.data();
    const std::string text      = llama_skip_describe(params.model.path.c_str(), overrides);
    if (!text.empty()) {
        LOG_WRN("%s\n", text.c_str());
    }
}

void common_skip_to_draft(common_params & params, const common_params_speculative_draft & draft) {
    std::vector<llama_model_kv_override> overrides;
    for (const auto & o : params.kv_overrides) {
        if (o.key[0] != 0 && !llama_skip_is_override(o.key)) {
            overrides.push_back(o);
        }
    }
    params.skip_layers = draft.skip_layers;
    params.skip_scale.clear();
    params.disk_layers.clear();
    params.disk_scale.clear();
    params.disk_idle.clear();
    params.disk_strict  = false;
    overrides           = draft_overrides(std::move(overrides), draft.skip_layers, params.skip_untested);
    params.kv_overrides = overrides.empty() ? overrides : terminated(overrides);
}
