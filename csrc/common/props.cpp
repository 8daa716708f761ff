#include "common/props.h"

#include "llama-skip.h"

#include "disk/context.h"
#include "tiers/tiers.h"

#include "json.h"

#include <nlohmann/json.hpp>

#include <mutex>

static double mib(uint64_t n_bytes) {
    return n_bytes / 1024.0 / 1024.0;
}

// what tells the memory of disk blocks, of the model that was loaded last: llama-server sleeps, and loads it again
struct disk_memory {
    std::mutex                                     mutex;
    std::function<std::pair<uint64_t, uint64_t>()> tell = [] {
        return std::make_pair(0, 0);
    };
};

static disk_memory & loaded() {
    static disk_memory memory;
    return memory;
}

void common_skip_props_loaded(const llama_model * model) {
    if (llama_model_n_on_disk(model) > 0) {
        std::lock_guard<std::mutex> lock(loaded().mutex);
        loaded().tell = llama_skip_disk_memory(model);
    }
}

std::function<std::string(bool)> common_skip_props(const llama_model * model, const common_skip_tiers & tiers) {
    const int32_t n_layer = llama_model_n_layer(model);
    auto          depths  = nlohmann::ordered_json::object();
    for (const auto & [name, layers] : tiers.depths()) {
        depths[name] = layers;
    }

    nlohmann::ordered_json props = {
        { "layers", llama_model_skip_layers(model) },
        { "scale", llama_model_skip_scale(model) },
        { "bypass", llama_model_skip_bypass(model) },
        { "n_layer", n_layer },
        { "n_layer_kept", n_layer - llama_model_n_skipped(model) },
        { "bytes_not_loaded", llama_model_skipped_size(model) },
        { "disk_layers", llama_model_disk_layers(model) },
        { "disk_scale", llama_model_disk_scale(model) },
        { "tiers", depths },
    };
    return [props](bool is_sleeping) {
        std::pair<uint64_t, uint64_t> n_bytes; // mapped, resident
        if (!is_sleeping) {
            std::lock_guard<std::mutex> lock(loaded().mutex);
            n_bytes = loaded().tell();
        }
        auto res                 = props;
        res["disk_mib_mapped"]   = mib(n_bytes.first);
        res["disk_mib_resident"] = mib(n_bytes.second);
        return res.dump();
    };
}

common_json common_skip_models(const common_json & own, const std::string & props) {
    const auto  known = nlohmann::ordered_json::parse(props).at("tiers");
    common_json res   = common_json::array({ own });
    for (const auto & tier : known.items()) {
        common_json model = own;
        model["id"]       = own.at("id").get<std::string>() + "@" + tier.key();
        res.push_back(model);
    }
    return res;
}
