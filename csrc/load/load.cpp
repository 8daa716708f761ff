#include "load/load.h"

#include "bypass/buffers.h"
#include "load/resolve.h"
#include "plan/identity.h"
#include "plan/metadata.h"

#include "llama-impl.h"
#include "llama-model-loader.h"
#include "llama-model.h"

#include <filesystem>
#include <stdexcept>

// holds when the program changes its folder; empty for a model without a path
static std::string absolute(const std::string & path) {
    std::error_code err;
    return path.empty() ? "" : std::filesystem::absolute(std::filesystem::u8path(path), err).u8string();
}

static std::filesystem::file_time_type time_of(const std::string & path) {
    std::error_code err;
    return path.empty() ? std::filesystem::file_time_type()
                        : std::filesystem::last_write_time(std::filesystem::u8path(path), err);
}

void llama_skip_load(llama_model_loader & ml, llama_model & model) {
    std::vector<llama_model_kv_override> overrides;
    for (const auto & [_, o] : ml.kv_overrides) {
        overrides.push_back(o);
    }
    overrides.emplace_back();
    overrides.back().key[0] = '\0';

    auto & hparams = model.hparams;

    const llama_skip_set set = llama_skip_resolve(ml, model, llama_skip_read_overrides(overrides.data()), {});

    if (set.skip.disk.any() && ml.files.empty()) {
        throw std::invalid_argument(LLAMA_SKIP_KEY_DISK ": the model has no file that could hold blocks");
    }
    hparams.skip = set.skip;
    model.skip   = std::make_shared<llama_skip_kept>();

    model.skip->path     = absolute(ml.skip.path);
    model.skip->written  = time_of(model.skip->path);
    model.skip->n_bytes  = ml.n_bytes;
    model.skip->baked    = llama_skip_baked(ml);
    model.skip->bypasses = set.bypasses;
    if (!hparams.skip.any() && hparams.skip.origin.text[0] != '\0' && !hparams.skip.disk.any()) {
        LLAMA_LOG_WARN("skip: %s leaves no block out\n", hparams.skip.origin.text.data());
    }
    if (!hparams.skip.any() && !hparams.skip.disk.any()) {
        return;
    }

    ml.skip.init(ml, hparams.skip);
    ml.n_created += ml.skip.n_tensors;
    ml.n_bytes -= ml.skip.n_bytes;
    ml.n_elements -= ml.skip.n_elements;
    ml.size_data -= ml.skip.n_bytes; // init_mappings() adds every tensor of the files

    model.skip->shapes = ml.skip.shapes;

    if (set.bypasses) {
        ml.n_bytes += set.bypasses->n_bytes();
        ml.n_elements += set.bypasses->n_elements();
        if (!ml.no_alloc) {
            set.bypasses->read_data(); // before any weight
        }
    }
    std::string text = llama_skip_summary(hparams.skip, hparams);
    if (hparams.skip.disk.any() && !ml.use_mmap) {
        text += ", whatever the load mode";
    }
    if (ml.no_alloc) {
        LLAMA_LOG_INFO("%s\n", text.c_str());
    } else {
        LLAMA_LOG_WARN("%s\n", text.c_str()); // the tools do not show lines below it
    }
}

std::string llama_skip_baked(const llama_model_loader & ml) {
    std::string layers;
    llama_skip_gguf_str(ml.metadata, "skip.bake.layers", layers);
    return layers;
}

std::string llama_skip_weights_id(const llama_model & model) {
    llama_skip_kept & kept = *model.skip;
    std::call_once(kept.identified, [&]() {
        if (time_of(kept.path) != kept.written) {
            throw std::runtime_error("the file " + kept.path + " has changed since it was loaded");
        }
        kept.weights_id = kept.path.empty() ? "" : llama_skip_hash_weights(kept.path);
    });
    return kept.weights_id;
}

void llama_skip_load_bypasses(llama_model & model) {
    if (!model.skip->bypasses) {
        return;
    }
    model.skip->bypasses->load(model);
    for (const auto & gap : model.skip->bypasses->all()) {
        for (ggml_tensor * t : gap.tensors()) {
            model.tensors_by_name.emplace_back(t->name, t); // counts for the number of nodes that a graph may have
        }
    }
}
