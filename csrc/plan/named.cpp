#include "plan/named.h"

#include "plan/metadata.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

static const int64_t version_known = 1; // of skip.plan.NAME

std::set<std::string> llama_skip_plan_names(const llama_skip_sources & sources) {
    static const std::string prefix = "skip.plan.";
    static const std::string suffix = ".version";

    std::set<std::string> names;
    for (const auto & source : sources) {
        for (int64_t i = 0; i < gguf_get_n_kv(source.meta); ++i) {
            const std::string key = gguf_get_key(source.meta, i);
            if (key.compare(0, prefix.size(), prefix) == 0 && key.size() > prefix.size() + suffix.size() &&
                key.compare(key.size() - suffix.size(), suffix.size(), suffix) == 0) {
                names.insert(key.substr(prefix.size(), key.size() - prefix.size() - suffix.size()));
            }
        }
    }
    return names;
}

// "a, b", or "none"
static std::string known_names(const llama_skip_sources & sources) {
    std::string text;
    for (const auto & name : llama_skip_plan_names(sources)) {
        text += (text.empty() ? "" : ", ") + name;
    }
    return text.empty() ? "none" : text;
}

llama_skip_plan llama_skip_read_named(
    const llama_skip_sources & sources, const llama_skip_identity & model, const std::string & name) {
    const std::string prefix = "skip.plan." + name;
    const auto        source = std::find_if(sources.begin(), sources.end(),
               [&](const llama_skip_source & s) { return gguf_find_key(s.meta, (prefix + ".version").c_str()) >= 0; });
    if (source == sources.end()) {
        throw std::runtime_error("the model brings no plan of that name, neither in its metadata nor in a .skip.gguf "
                                 "beside it; known: " +
                                 known_names(sources));
    }
    llama_skip_plan plan;
    plan.other_weights = llama_skip_check_header(*source, prefix, version_known, model).other_weights;
    plan.layers        = llama_skip_need_str(*source, prefix + ".layers");
    llama_skip_gguf_str(source->meta, prefix + ".scale", plan.scale);
    llama_skip_gguf_str(source->meta, prefix + ".disk_layers", plan.disk_layers);
    llama_skip_gguf_str(source->meta, prefix + ".disk_scale", plan.disk_scale);

    float kld = NAN;
    llama_skip_gguf_float(source->meta, prefix + ".kld", kld);
    plan.origin = source->where + llama_skip_cost_str(kld);
    return plan;
}
