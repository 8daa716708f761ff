#include "llama-skip.h"

#include "bypass/bypass.h"
#include "graph/cvec.h"
#include "load/make-disk.h"
#include "load/files.h"
#include "load/make.h"
#include "context/mask.h"
#include "plan/plan.h"
#include "plan/header.h"
#include "set/spec.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model-loader.h"
#include "llama-model.h"

#include <stdexcept>

static thread_local std::string last_error;
static thread_local std::string last_text;

const char * llama_skip_version(void) {
    return LLAMA_SKIP_VERSION;
}

const char * llama_skip_upstream(void) {
    return LLAMA_SKIP_UPSTREAM;
}

const char * llama_skip_error(void) {
    return last_error.c_str();
}

// what `spec` leaves out of a file, read as far as its hyperparameters; nothing when these cannot be read
struct checked_file : llama_skip_set {
    std::unique_ptr<llama_model> model; // hyperparameters only
};

static checked_file check(const char * path_model, const llama_skip_spec & spec, const llama_skip_names & names) {
    checked_file res;
    if (spec.empty() || path_model == nullptr || path_model[0] == '\0') {
        return res;
    }
    std::unique_ptr<llama_model_loader> ml;
    std::unique_ptr<llama_model>        model;
    try {
        llama_skip_quiet_log quiet;

        llama_model_params       params = llama_model_default_params();
        std::vector<std::string> splits;
        ml.reset(new llama_model_loader(nullptr, nullptr, nullptr, path_model, splits, nullptr, LLAMA_LOAD_MODE_NONE,
            false, true, false, nullptr, nullptr));

        model.reset(llama_model_create(*ml, params));
        auto * base = dynamic_cast<llama_model_base *>(model.get());
        if (base == nullptr || model->arch == LLM_ARCH_CLIP) {
            return res; // a projector has no hyperparameters to read, and loading it gives the reason
        }
        model->hparams.vocab_only = false;
        model->hparams.no_alloc   = true;
        base->load_hparams(*ml);
    } catch (const std::exception &) {
        return res;
    }
    static_cast<llama_skip_set &>(res) = llama_skip_resolve(*ml, *model, spec, names);

    ml->skip.init(*ml, res.skip);
    res.model = std::move(model);
    return res;
}

// The blocks that a plan leaves out or keeps on disk. Callers ask for one block after the other, so the last answer is
// kept until the next check of a plan in this thread.
static thread_local struct {
    std::string     path_model;
    std::string     plan;
    llama_skip_mask blocks;
} last_plan;

static const llama_skip_mask & plan_blocks(const std::string & path_model, const llama_skip_spec & spec) {
    if (last_plan.plan != spec.plan || last_plan.path_model != path_model) {
        const checked_file file = check(path_model.c_str(), spec, {});
        last_plan               = { path_model, spec.plan, {} };
        if (file.model) {
            last_plan.blocks =
                file.skip.file_blocks(file.skip.out | file.skip.disk.blocks, file.model->hparams.n_layer());
        }
    }
    return last_plan.blocks;
}

bool llama_skip_check(const char * path_model, const char * layers, const char * scale, const char * name_layers,
    const char * name_scale) {
    try {
        const llama_skip_spec  spec  = llama_skip_make_spec(layers ? layers : "", scale ? scale : "");
        const llama_skip_names names = llama_skip_names_for(name_layers, name_scale);

        // the grammar first: it needs no file
        if (!spec.plan.empty()) {
            llama_skip_check_plan(names.layers, spec.plan);
        }
        if (!spec.layers.empty()) {
            llama_skip_parse_layers(names.layers, spec.layers);
        }
        if (!spec.scale.empty()) {
            llama_skip_parse_scale(names.scale, spec.scale);
        }
        check(path_model, spec, names);
        return true;
    } catch (const std::exception & err) {
        last_error = err.what();
        return false;
    }
}

bool llama_skip_check_disk(const char * layers, const char * scale, const char * idle) {
    try {
        llama_skip_spec spec;
        spec.disk       = layers ? layers : "";
        spec.disk_scale = scale ? scale : "";
        spec.disk_idle  = idle ? idle : "";
        llama_skip_disk_parse(spec, llama_skip_names_for("--skip-layers", "--skip-scale"));
        return true;
    } catch (const std::exception & err) {
        last_error = err.what();
        return false;
    }
}

bool llama_skip_check_overrides(const char * path_model, const llama_model_kv_override * overrides) {
    return llama_skip_check_flags(path_model, overrides, LLAMA_SKIP_KEY_LAYERS, LLAMA_SKIP_KEY_SCALE);
}

bool llama_skip_check_flags(const char * path_model, const llama_model_kv_override * overrides,
    const char * name_layers, const char * name_scale) {
    try {
        check(path_model, llama_skip_read_overrides(overrides), llama_skip_names_for(name_layers, name_scale));
        last_plan.plan.clear();
        return true;
    } catch (const std::exception & err) {
        last_error = err.what();
        return false;
    }
}

const char * llama_skip_describe(const char * path_model, const llama_model_kv_override * overrides) {
    last_text.clear();
    try {
        const checked_file file = check(path_model, llama_skip_read_overrides(overrides), {});
        if (file.skip.any() || file.skip.disk.any()) {
            last_text = llama_skip_summary(file.skip, file.model->hparams.n_layer());
        }
    } catch (const std::exception & err) {
        last_error = err.what();
    }
    return last_text.c_str();
}

std::string llama_skip_cvec_refusal(
    const char * path_model, const llama_model_kv_override * overrides, int32_t il_start, int32_t il_end) {
    const checked_file file = check(path_model, llama_skip_read_overrides(overrides), {});
    return file.model ? llama_skip_cvec_refusal(*file.model, file.skip, llama_skip_cvec_layers(il_start, il_end)) : "";
}

bool llama_model_is_skipped(const llama_model * model, int32_t il) {
    return il >= 0 && il < LLAMA_SKIP_MAX_LAYERS && model->hparams.skip.out[il];
}

int32_t llama_model_n_skipped(const llama_model * model) {
    return model->hparams.skip.out.count();
}

uint64_t llama_model_skipped_size(const llama_model * model) {
    return model->hparams.skip.n_bytes;
}

const char * llama_model_skip_layers(const llama_model * model) {
    last_text = llama_skip_layers_str(model->hparams.skip.file_blocks(model->hparams.n_layer()));
    return last_text.c_str();
}

const char * llama_model_skip_scale(const llama_model * model) {
    last_text = llama_skip_scale_str(model->hparams.skip);
    return last_text.c_str();
}

const char * llama_model_skip_bypass(const llama_model * model) {
    last_text = llama_skip_bypass_str(model->hparams.skip);
    return last_text.c_str();
}

const char * llama_model_skip_summary(const llama_model * model) {
    const llama_skip & skip = model->hparams.skip;
    last_text               = skip.any() || skip.disk.any() ? llama_skip_summary(skip, model->hparams.n_layer()) : "";
    return last_text.c_str();
}

const char * llama_model_disk_layers(const llama_model * model) {
    const llama_skip & skip = model->hparams.skip;
    last_text               = llama_skip_layers_str(skip.file_blocks(skip.disk.blocks, model->hparams.n_layer()));
    return last_text.c_str();
}

const char * llama_model_disk_scale(const llama_model * model) {
    last_text = llama_skip_disk_scale_str(model->hparams.skip);
    return last_text.c_str();
}

int32_t llama_skip_layer_index(const char * path_model, const llama_model_kv_override * overrides, int32_t ordinal) {
    try {
        const llama_skip_spec spec = llama_skip_read_overrides(overrides);
        if (!spec.plan.empty()) {
            return llama_skip_file_index(plan_blocks(path_model ? path_model : "", spec), ordinal);
        }
        llama_skip_mask mask; // those that are on no device
        for (const std::string & layers : { spec.layers, spec.disk }) {
            const auto ranges = llama_skip_parse_layers(LLAMA_SKIP_KEY_LAYERS, layers.empty() ? "none" : layers);
            for (const auto & r : ranges) {
                for (int64_t il = r.first; il <= r.last && il < LLAMA_SKIP_MAX_LAYERS; il += r.step) {
                    mask.set(il);
                }
            }
        }
        return llama_skip_file_index(mask, ordinal);
    } catch (const std::exception &) {
        return ordinal; // loading reports it
    }
}

bool llama_skip_set_mask(llama_context * ctx, const char * layers, const char * scale) {
    try {
        ctx->skip_set(llama_skip_make_mask(ctx->get_model(), layers, scale));
        return true;
    } catch (const std::exception & err) {
        last_error = err.what();
        return false;
    }
}

const char * llama_skip_state_tag(const llama_context * ctx) {
    last_text = llama_skip_make_tag(ctx->get_model().hparams.skip, ctx->get_cparams().skip);
    return last_text.c_str();
}

bool llama_skip_is_masked(const llama_context * ctx, int32_t il) {
    return il >= 0 && il < LLAMA_SKIP_MAX_LAYERS && ctx->get_cparams().skip.out[il];
}
