#include "context/mask.h"

#include "context/state.h"

#include "bypass/buffers.h"
#include "load/load.h"
#include "load/make.h"
#include "plan/header.h"
#include "set/spec.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model-loader.h"
#include "llama-model.h"

#include <stdexcept>

// Plans stand in or beside the model's file, and say which model they are for: its header is read once more.
static llama_skip_plan look_up(const llama_model & model, llama_skip_spec & spec, llama_skip_names & names) {
    const std::string given = names.layers + ": '" + spec.plan + "': ";
    if (model.skip->path.empty()) {
        throw std::invalid_argument(
            given + "a plan needs the model's file, and this model was loaded without its path");
    }
    std::unique_ptr<llama_model_loader> ml;
    try {
        llama_skip_quiet_log quiet;

        ml = llama_skip_open_header(model.skip->path, quiet);
    } catch (const std::exception & err) {
        throw std::invalid_argument(given + err.what());
    }
    if (ml->n_bytes != model.skip->n_bytes) {
        throw std::invalid_argument(given + "the file " + model.skip->path + " has changed since it was loaded");
    }
    return llama_skip_look_up(*ml, model.hparams, spec, names);
}

// the model's set and `layers`, with what the model has in the gaps that this leaves as they are
static llama_skip merge(const llama_model & model, const std::string & layers, const llama_skip_names & names) {
    const llama_skip &    loaded  = model.hparams.skip;
    const int32_t         n_layer = model.hparams.n_layer() / loaded.model.n_loop; // the file's
    const llama_skip_mask blocks  = loaded.file_blocks(model.hparams.n_layer());

    llama_skip skip = loaded.model_only();
    llama_skip_resolve_layers(names.layers, llama_skip_parse_layers(names.layers, layers), n_layer, skip);
    skip.out |= blocks;
    for (int half = 0; half < LLAMA_SKIP_N_HALVES; ++half) {
        skip.half[half] |= loaded.file_blocks(loaded.half[half], model.hparams.n_layer());
        skip.half[half] &= ~skip.out;
    }
    if ((int32_t) skip.empty().count() == n_layer) {
        throw std::invalid_argument(names.layers + ": every block is left out, blocks " +
                                    llama_skip_layers_str(blocks) + " already when the model was loaded");
    }
    const auto same_halves = [&](int32_t il) {
        return loaded.half[LLAMA_SKIP_MIXER][il] == skip.half[LLAMA_SKIP_MIXER][il] &&
               loaded.half[LLAMA_SKIP_FFN][il] == skip.half[LLAMA_SKIP_FFN][il];
    };
    for (int32_t il = 0; il < LLAMA_SKIP_MAX_LAYERS; ++il) {
        const int32_t size = loaded.gap_size(il);
        if (size >= 0 && skip.gap_size(il) == size && (size > 0 || same_halves(il - 1))) {
            skip.scale[il]  = loaded.scale[il];
            skip.bypass[il] = loaded.bypass[il];
        }
    }
    return skip;
}

// scales given as a text replace whatever stands in the gaps that they name
static void set_scales(llama_skip & skip, const std::string & text, const llama_skip_names & names) {
    const llama_skip_scales scales = llama_skip_parse_scale(names.scale, text);
    llama_skip_resolve_scale(names.scale, scales, skip);
    for (const auto & [il, _] : scales) {
        if (il < 0) {
            skip.bypass.fill(nullptr);
        } else {
            skip.bypass[il] = nullptr;
        }
    }
}

// the scales of a plan are those of its own gaps
static void set_plan_scales(llama_skip & skip, const llama_skip_spec & plan, const llama_skip_names & names) {
    llama_skip own;
    llama_skip_resolve_layers(
        names.layers, llama_skip_parse_layers(names.layers, plan.layers), LLAMA_SKIP_MAX_LAYERS, own);
    llama_skip_resolve_scale(names.scale, llama_skip_parse_scale(names.scale, plan.scale), own);
    for (int32_t il = 0; il < LLAMA_SKIP_MAX_LAYERS; ++il) {
        if (!own.gap_begins(il) || own.scale[il] == 1.0f) {
            continue;
        }
        if (!skip.gap_begins(il) || skip.gap_end(il) != own.gap_end(il)) {
            llama_skip_mask gap = own.out;
            gap &= llama_skip_mask().set() << il;
            gap &= ~(llama_skip_mask().set() << own.gap_end(il));
            throw std::invalid_argument(names.scale + ": the plan scales the gap of blocks " +
                                        llama_skip_layers_str(gap) +
                                        ", that is no gap of the blocks left out: " + llama_skip_layers_str(skip.out));
        }
        skip.scale[il]  = own.scale[il];
        skip.bypass[il] = nullptr;
    }
}

// those of a plan in place of what the model has in their gaps, and the other ones of the model
static std::vector<const llama_skip_bypass_tensors *> take_bypasses(
    llama_skip & skip, const std::vector<const llama_skip_bypass_tensors *> & plan) {
    for (const auto * bypass : plan) {
        if (bypass->first < LLAMA_SKIP_MAX_LAYERS) {
            skip.scale[bypass->first]  = 1.0f;
            skip.bypass[bypass->first] = nullptr;
        }
    }
    std::vector<const llama_skip_bypass_tensors *> res = plan;
    for (const auto * bypass : skip.bypass) {
        if (bypass != nullptr) {
            res.push_back(bypass);
        }
    }
    return res;
}

static void log_plan(const llama_skip & skip, const llama_skip_plan & plan) {
    const std::string bypass = llama_skip_bypass_str(skip);
    LLAMA_LOG_INFO("skip: mask of %s: blocks %s left out%s%s\n", plan.origin.c_str(), llama_skip_set_str(skip).c_str(),
        bypass.empty() ? "" : ", bypass ", bypass.c_str());
    if (plan.other_weights) {
        LLAMA_LOG_WARN("%s\n", llama_skip_other_weights);
    }
}

llama_skip_set llama_skip_make_mask(const llama_model & model, const char * layers, const char * scale) {
    llama_skip_names names = { "mask", "mask scale" };
    llama_skip_spec  asked = llama_skip_make_spec(layers ? layers : "none", scale ? scale : "");
    llama_skip_plan  plan;
    const bool       has_plan = !asked.plan.empty();
    if (scale != nullptr) {
        llama_skip_parse_scale(names.scale, scale); // an empty text is malformed, too
    }
    if (has_plan) {
        const std::string given = names.layers + ": '" + asked.plan + "'";

        plan = look_up(model, asked, names);
        if (!plan.disk_layers.empty() || !plan.disk_scale.empty()) {
            throw std::invalid_argument(given + ": the plan keeps blocks on disk, give it when the model is loaded");
        }
    }
    llama_skip skip = merge(model, asked.layers, names);
    if (!plan.scale.empty()) {
        set_plan_scales(skip, asked, names);
    } else if (!asked.scale.empty()) {
        set_scales(skip, asked.scale, names);
    }
    llama_skip_spec spec;
    spec.bypasses = take_bypasses(skip, asked.bypasses);
    spec.layers   = llama_skip_set_str(skip);
    spec.scale    = llama_skip_scale_str(skip);

    llama_skip_set res = { llama_skip_make(model.hparams, model.arch, spec, names), plan.bypasses };
    if (res.bypasses) {
        if (!model.hparams.no_alloc) {
            res.bypasses->read_data();
        }
        res.bypasses->load(model);
    }
    if (has_plan) {
        log_plan(res.skip, plan);
    }
    return res;
}

std::shared_ptr<const llama_skip_made_mask> llama_skip_make_mask(llama_context & ctx, const std::string & layers) {
    const llama_model & model = ctx.get_model();
    auto                res   = std::make_shared<llama_skip_made_mask>();

    static_cast<llama_skip_set &>(*res) = llama_skip_make_mask(model, layers.c_str(), nullptr);

    res->loaded = &model.hparams.skip;
    res->layers = llama_skip_set_str(res->skip, model.hparams.n_layer());
    res->tag    = llama_skip_saved_tag(model, res->skip);
    ctx.skip_check(*res);
    return res;
}

bool llama_skip_made_mask::lacks(const llama_skip_made_mask * other) const {
    return (skip.no_cache() & ~(other ? other->skip : *loaded).no_cache()).any();
}

void llama_skip_use_mask(llama_context & ctx, const llama_skip_made_mask * mask) {
    ctx.skip_use(
        mask ? static_cast<const llama_skip_set &>(*mask) : llama_skip_set{ ctx.get_model().hparams.skip, nullptr });
}
