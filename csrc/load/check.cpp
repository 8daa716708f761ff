#include "load/check.h"

#include "bypass/buffers.h"
#include "graph/cvec.h"
#include "plan/header.h"

#include "llama-impl.h"
#include "llama-model-loader.h"
#include "llama-model.h"

llama_skip_checked_file::llama_skip_checked_file()                           = default;
llama_skip_checked_file::llama_skip_checked_file(llama_skip_checked_file &&) = default;
llama_skip_checked_file::~llama_skip_checked_file()                          = default;

llama_skip_checked_file llama_skip_check_file(
    const char * path_model, const llama_skip_spec & spec, const llama_skip_names & names) {
    llama_skip_checked_file res;
    if (spec.empty() || path_model == nullptr || path_model[0] == '\0') {
        return res;
    }
    std::unique_ptr<llama_model_loader> ml;
    std::unique_ptr<llama_model>        model;
    try {
        llama_skip_quiet_log quiet;

        llama_model_params params = llama_model_default_params();
        ml                        = llama_skip_open_header(path_model, quiet);

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

size_t llama_skip_plan_bytes(const std::string & path_model, const std::string & layers) {
    try {
        const auto file = llama_skip_check_file(path_model.c_str(), llama_skip_make_spec(layers, ""), {});
        return file.bypasses ? file.bypasses->n_bytes() : 0;
    } catch (const std::exception &) {
        return 0;
    }
}

// Callers ask for one block after the other, so the last answer is kept until the next check of a plan in this thread.
static thread_local struct {
    std::string     path_model;
    std::string     plan;
    llama_skip_mask blocks;
} last_plan;

llama_skip_mask llama_skip_plan_blocks(const std::string & path_model, const llama_skip_spec & spec) {
    if (last_plan.plan != spec.plan || last_plan.path_model != path_model) {
        const llama_skip_checked_file file = llama_skip_check_file(path_model.c_str(), spec, {});

        llama_skip_forget_plan();
        if (!file.model) {
            return {}; // loading gives the reason
        }
        const auto blocks = file.skip.out | file.skip.disk.blocks;
        last_plan         = { path_model, spec.plan, file.skip.file_blocks(blocks, file.model->hparams.n_layer()) };
    }
    return last_plan.blocks;
}

void llama_skip_forget_plan() {
    last_plan.plan.clear();
}

std::string llama_skip_cvec_refusal(
    const char * path_model, const llama_model_kv_override * overrides, int32_t il_start, int32_t il_end) {
    const llama_skip_checked_file file = llama_skip_check_file(path_model, llama_skip_read_overrides(overrides), {});
    return file.model ? llama_skip_cvec_refusal(*file.model, file.skip, llama_skip_cvec_layers(il_start, il_end)) : "";
}
