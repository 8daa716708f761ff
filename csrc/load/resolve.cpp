#include "load/resolve.h"

#include "bypass/buffers.h"
#include "load/make-disk.h"
#include "load/make.h"
#include "load/model.h"
#include "set/spec.h"

#include "llama-impl.h"
#include "llama-model-loader.h"
#include "llama-model.h"

#include <algorithm>
#include <stdexcept>

llama_skip_plan llama_skip_look_up(
    llama_model_loader & ml, const llama_hparams & hparams, llama_skip_spec & spec, llama_skip_names & names) {
    if (names.layers == LLAMA_SKIP_KEY_LAYERS) {
        names.layers = LLAMA_SKIP_KEY_PLAN;
    }
    llama_skip_plan plan = llama_skip_find_plan(names.layers, spec.plan, ml, hparams);
    if (!spec.scale.empty() && (!plan.scale.empty() || plan.bypasses)) {
        throw std::invalid_argument(names.scale + ": the plan '" + spec.plan + "' brings " +
                                    (plan.bypasses ? "bypasses of its own" : "scales of its own (" + plan.scale + ")"));
    }
    if (!plan.disk_layers.empty() || !plan.disk_scale.empty()) {
        if (!spec.disk.empty() || !spec.disk_scale.empty()) {
            throw std::invalid_argument(
                names.disk + ": the plan '" + spec.plan + "' brings disk blocks of its own (" + plan.disk_layers + ")");
        }
        spec.disk       = plan.disk_layers;
        spec.disk_scale = plan.disk_scale;
        names.disk = names.disk_scale = names.layers;
    }
    spec.layers = plan.layers;
    if (!plan.scale.empty()) {
        spec.scale  = plan.scale;
        names.scale = names.layers;
    }
    for (size_t i = 0; plan.bypasses && i < plan.bypasses->all().size(); ++i) {
        spec.bypasses.push_back(&plan.bypasses->all()[i]);
    }
    return plan;
}

llama_skip_set llama_skip_resolve(
    llama_model_loader & ml, llama_model & model, const llama_skip_spec & given, const llama_skip_names & given_names) {
    llama_skip_read_model(ml, model);
    if (given.plan.empty()) {
        return { llama_skip_make(model.hparams, model.arch, given, given_names), nullptr };
    }
    llama_skip_spec  spec  = given;
    llama_skip_names names = given_names;

    const llama_skip_plan plan = llama_skip_look_up(ml, model.hparams, spec, names);
    llama_skip            skip = llama_skip_make(model.hparams, model.arch, spec, names);
    skip.origin.other_weights  = plan.other_weights;

    // a long path is cut at its front, the array keeps a NUL
    const size_t n_cut = plan.origin.size() - std::min(plan.origin.size(), skip.origin.text.size() - 1);
    plan.origin.copy(skip.origin.text.data(), skip.origin.text.size() - 1, n_cut);
    return { skip, plan.bypasses };
}

const char * const llama_skip_other_weights = "skip: the plan was made with a file of the same architecture and "
                                              "shapes, but other weights (another quantization, or a "
                                              "fine-tune)";

// what a set chosen by hand costs nobody knows yet
static std::string why_str(const llama_skip & skip, const std::string & layers) {
    if (skip.origin.text[0] == '\0') {
        return "what it costs: llama-skip eval FILE --skip-layers " + layers + " -f TEXT";
    }
    return std::string("chosen by ") + skip.origin.text.data() +
           (skip.origin.other_weights ? std::string("\n") + llama_skip_other_weights : "");
}

// "1 attention", "2 attentions"
static std::string count_str(size_t n, const std::string & what) {
    return n == 0 ? "" : std::to_string(n) + " " + what + (n > 1 ? "s" : "");
}

// " (2 blocks, 1 attention)" where halves are left out
static std::string counts_str(const llama_skip & skip, int32_t n_layer) {
    const auto count = [&](const llama_skip_mask & blocks) {
        return skip.file_blocks(blocks, n_layer).count();
    };
    std::string text;
    for (const std::string & part :
        { count_str(count(skip.out), "block"), count_str(count(skip.half[LLAMA_SKIP_MIXER]), "attention"),
            count_str(count(skip.half[LLAMA_SKIP_FFN]), "feed-forward") }) {
        text += (text.empty() || part.empty() ? "" : ", ") + part;
    }
    return skip.any_half() ? " (" + text + ")" : "";
}

// KiB that the cache would hold of each token, as F16
static double kv_size(const llama_skip & skip, const llama_hparams & hparams) {
    uint64_t n = 0;
    for (int32_t il = 0; il < (int32_t) hparams.n_layer() && hparams.causal_attn; ++il) {
        const bool has_cache = hparams.n_layer_kv_from_start < 0 || il < hparams.n_layer_kv_from_start;
        if (skip.no_cache()[il] && has_cache && !hparams.is_recr(il)) {
            n += hparams.n_embd_k_gqa(il) + (hparams.is_mla() ? 0 : hparams.n_embd_v_gqa(il));
        }
    }
    return n * sizeof(uint16_t) / 1024.0;
}

std::string llama_skip_summary(const llama_skip & skip, const llama_hparams & hparams) {
    const int32_t     n_layer = hparams.n_layer();
    const std::string disk    = llama_skip_disk_summary(skip, n_layer);
    if (!skip.any()) {
        return disk;
    }
    const std::string layers = llama_skip_set_str(skip, n_layer);
    const std::string scale  = llama_skip_scale_str(skip);
    const std::string bypass = llama_skip_bypass_str(skip);
    return format("skip: blocks %s left out%s%s%s, %d of %d kept, %.2f MiB not loaded, %.2f KiB less KV a token (F16); "
                  "%s%s%s%s%s%s",
        layers.c_str(), counts_str(skip, n_layer).c_str(), scale.empty() ? "" : ", scale ", scale.c_str(),
        skip.n_kept(0, n_layer / skip.model.n_loop), n_layer / skip.model.n_loop, skip.n_bytes / 1024.0 / 1024.0,
        kv_size(skip, hparams), bypass.empty() ? "" : "bypass ", bypass.c_str(), bypass.empty() ? "" : "; ",
        why_str(skip, layers).c_str(), disk.empty() ? "" : "\n", disk.c_str());
}
