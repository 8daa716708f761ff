#include "plan/source.h"

#include "plan/metadata.h"
#include "set/spec.h"

#include <cmath>
#include <stdexcept>

void llama_skip_check_version(int64_t version, int64_t most, const std::string & what) {
    if (version < 1 || version > most) {
        throw std::runtime_error(what + " has version " + std::to_string(version) + ", this build knows 1" +
                                 (most > 1 ? "-" + std::to_string(most) : ""));
    }
}

bool llama_skip_check_model(const llama_skip_identity & model, const std::string & model_id,
    const std::string & file_id, const std::string & what) {
    if (model_id != model.model_id) {
        throw std::runtime_error(
            what + " is about another model (" + model_id + ", this one is " + model.model_id + ")");
    }
    return file_id != model.file_id;
}

std::string llama_skip_need_str(const llama_skip_source & source, const std::string & key) {
    std::string value;
    if (!llama_skip_gguf_str(source.meta, key, value)) {
        throw std::runtime_error(source.where + " has no " + key);
    }
    return value;
}

llama_skip_plan_header llama_skip_check_header(const llama_skip_source & source, const std::string & prefix,
    int64_t most_version, const llama_skip_identity & model) {
    int64_t version = 0;
    if (!llama_skip_gguf_int(source.meta, prefix + ".version", version)) {
        throw std::runtime_error(source.where + " has no " + prefix + ".version");
    }
    const std::string what = prefix + " of " + source.where;
    llama_skip_check_version(version, most_version, what);
    return { version, llama_skip_check_model(model, llama_skip_need_str(source, prefix + ".model_id"),
                          llama_skip_need_str(source, prefix + ".file_id"), what) };
}

std::string llama_skip_cost_str(float kld) {
    return std::isfinite(kld) ? ", KL divergence " + llama_skip_number_str(kld) : "";
}
