#include "load/model.h"

#include "set/arch.h"

#include "llama-impl.h"
#include "llama-model-loader.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>

// the value of a tensor with one element, 1 where the file has none
static float read_factor(llama_model_loader & ml, const std::string & name) {
    float        value = 1.0f;
    const auto * w     = ml.get_weight(name.c_str());
    if (w == nullptr || ml.files.empty() || ggml_nelements(w->tensor) != 1) {
        return value; // upstream refuses more than one
    }
    std::vector<uint8_t> data(ggml_nbytes(w->tensor));
    ml.files.at(w->idx)->seek(w->offs, SEEK_SET);
    ml.files.at(w->idx)->read_raw(data.data(), data.size());
    if (w->tensor->type == GGML_TYPE_F32) {
        memcpy(&value, data.data(), sizeof(value));
    } else if (const auto to_float = ggml_get_type_traits(w->tensor->type)->to_float) {
        to_float(data.data(), &value, 1);
    }
    return value;
}

static bool is_of_state(const std::string & name) {
    const auto parts = { ".ssm_", ".time_mix_", ".indexer", ".attn_compressor" };
    return std::any_of(
        parts.begin(), parts.end(), [&](const char * part) { return name.find(part) != std::string::npos; });
}

static void read_halves(const llama_model_loader & ml, llama_skip_model & facts) {
    for (const auto & [name, w] : ml.weights_map) {
        const int32_t il   = llama_skip_block_of(name);
        const int     half = llama_skip_half_of(name, ggml_n_dims(w.tensor));
        if (il >= 0 && half >= 0) {
            facts.present[half].set(il);
        }
        if (il >= 0 && is_of_state(name)) {
            facts.stateful.set(il);
        }
    }
}

void llama_skip_read_model(llama_model_loader & ml, llama_model & model) {
    auto &     hparams = model.hparams;
    auto &     facts   = hparams.skip.model;
    const auto arch    = llama_skip_arch_of(model.arch);
    for (int32_t il = 0; il < (int32_t) hparams.n_layer(); ++il) {
        const int32_t every = hparams.rescale_every_n_layers;
        if (arch.factor_tensor != nullptr) {
            facts.factor[il] = read_factor(ml, format("blk.%d.%s", il, arch.factor_tensor));
        } else if (every > 0 && (il + 1) % every == 0) {
            facts.factor[il] = arch.rescale;
        }
    }
    if (arch.loops != nullptr) {
        arch.loops(model, facts);
    }
    read_halves(ml, facts);
}

int32_t llama_skip_n_positions(const llama_model & model) {
    const ggml_tensor * t = model.get_tensor("position_embd.weight");
    return t ? (int32_t) t->ne[1] : 0;
}

bool llama_skip_can_rank(const llama_model & model) {
    return model.get_tensor("cls.weight") != nullptr || model.get_tensor("cls.output.weight") != nullptr;
}
