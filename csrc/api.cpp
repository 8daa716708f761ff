#include "llama-skip.h"

#include "bypass/bypass.h"
#include "context/mask.h"
#include "context/state.h"
#include "disk/pager.h"
#include "load/check.h"
#include "load/make-disk.h"
#include "plan/plan.h"
#include "set/spec.h"

#include "llama-context.h"
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
        llama_skip_check_file(path_model, spec, names);
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
        llama_skip_check_file(
            path_model, llama_skip_read_overrides(overrides), llama_skip_names_for(name_layers, name_scale));
        llama_skip_forget_plan();
        return true;
    } catch (const std::exception & err) {
        last_error = err.what();
        return false;
    }
}

const char * llama_skip_describe(const char * path_model, const llama_model_kv_override * overrides) {
    last_text.clear();
    try {
        const llama_skip_checked_file file =
            llama_skip_check_file(path_model, llama_skip_read_overrides(overrides), {});
        if (file.skip.any() || file.skip.disk.any()) {
            last_text = llama_skip_summary(file.skip, file.model->hparams);
        }
    } catch (const std::exception & err) {
        last_error = err.what();
    }
    return last_text.c_str();
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
    last_text = llama_skip_set_str(model->hparams.skip, model->hparams.n_layer());
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
    last_text               = skip.any() || skip.disk.any() ? llama_skip_summary(skip, model->hparams) : "";
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
            return llama_skip_file_index(llama_skip_plan_blocks(path_model ? path_model : "", spec), ordinal);
        }
        llama_skip_mask mask; // those that are on no device
        for (const std::string & layers : { spec.layers, spec.disk }) {
            const auto ranges = llama_skip_parse_layers(LLAMA_SKIP_KEY_LAYERS, layers.empty() ? "none" : layers);
            for (const auto & r : ranges) {
                for (int64_t il = r.first; il <= r.last && il < LLAMA_SKIP_MAX_LAYERS && r.half < 0; il += r.step) {
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
        const llama_skip_set set = llama_skip_make_mask(ctx->get_model(), layers, scale);
        if (set.skip != ctx->get_cparams().skip) {
            ctx->skip_check(set);
            ctx->skip_use(set);
        }
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

const char * llama_skip_mask_layers(const llama_context * ctx) {
    last_text = llama_skip_set_str(ctx->get_cparams().skip, ctx->get_model().hparams.n_layer());
    return last_text.c_str();
}

bool llama_skip_is_masked(const llama_context * ctx, int32_t il) {
    return il >= 0 && il < LLAMA_SKIP_MAX_LAYERS && ctx->get_cparams().skip.out[il];
}

bool llama_model_is_on_disk(const llama_model * model, int32_t il) {
    const auto & skip = model->hparams.skip;
    return il >= 0 && il < LLAMA_SKIP_MAX_LAYERS && skip.disk.blocks[il] && !skip.out[il];
}

int32_t llama_model_n_on_disk(const llama_model * model) {
    return model->hparams.skip.disk.blocks.count();
}

void llama_skip_standby(const llama_model * model) {
    if (model->skip_disk) {
        model->skip_disk->standby();
    }
}

uint64_t llama_skip_disk_mapped(const llama_model * model) {
    return model->skip_disk ? model->skip_disk->files->n_bytes_mapped() : 0;
}

uint64_t llama_skip_disk_resident(const llama_model * model) {
    return model->skip_disk ? model->skip_disk->files->n_bytes_resident() : 0;
}

bool llama_skip_disk_nodes(const llama_context * ctx, int32_t il, int32_t * n_host, int32_t * n_device) {
    return ctx->skip_disk_nodes(il, *n_host, *n_device);
}
