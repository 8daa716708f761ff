#include "load/baked.h"

#include "load/load.h"
#include "plan/metadata.h"

#include "llama-impl.h"
#include "llama-model-loader.h"
#include "llama-model.h"

#include <stdexcept>

void llama_skip_warn_baked(const llama_model & model) {
    if (model.skip->baked.empty()) {
        return;
    }
    std::call_once(model.skip->warned, [&]() {
        LLAMA_LOG_WARN("skip: this model was baked without blocks %s: adapters and control vectors that were made for "
                       "the full model go to the wrong blocks\n",
            model.skip->baked.c_str());
    });
}

bool llama_skip_adapter_tensor(const llama_model & model, const std::string & name) {
    llama_skip_warn_baked(model);
    return llama_skip_matrix(model.hparams.skip, name, /*n_dims =*/2);
}

void llama_skip_check_imatrix(
    const llama_model_loader & ml, const std::unordered_map<std::string, std::vector<float>> & imatrix) {
    const std::string baked = llama_skip_baked(ml);
    for (const auto & [name, _] : imatrix) {
        if (!baked.empty() && ml.weights_map.count(name) == 0) {
            throw std::runtime_error(
                format("the importance matrix has '%s', which this model, baked without blocks %s, has not: llama-skip "
                       "bake --imatrix writes the one that fits",
                    name.c_str(), baked.c_str()));
        }
    }
}
