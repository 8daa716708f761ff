// What llama-server tells about a model in /props.

#include "skip-args.h"

#include "skip-disk-pager.h"

#include <nlohmann/json.hpp>

static double mib(uint64_t n_bytes) {
    return n_bytes / 1024.0 / 1024.0;
}

std::function<std::string()> common_skip_props(const llama_model * model) {
    const int32_t n_layer = llama_model_n_layer(model);

    nlohmann::ordered_json props = {
        { "layers", llama_model_skip_layers(model) },
        { "scale", llama_model_skip_scale(model) },
        { "bypass", llama_model_skip_bypass(model) },
        { "n_layer", n_layer },
        { "n_layer_kept", n_layer - llama_model_n_skipped(model) },
        { "bytes_not_loaded", llama_model_skipped_size(model) },
        { "disk_layers", llama_model_disk_layers(model) },
        { "disk_scale", llama_model_disk_scale(model) },
    };
    // the model may be gone when it is asked for: llama-server can sleep
    return [props, memory = llama_skip_disk_memory(model)]() mutable {
        const auto [n_mapped, n_resident] = memory();

        props["disk_mib_mapped"]   = mib(n_mapped);
        props["disk_mib_resident"] = mib(n_resident);
        return props.dump();
    };
}
