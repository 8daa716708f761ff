#pragma once

// What llama-server tells about a model in /props.

#include <functional>
#include <string>

class common_json;
class common_skip_tiers;
struct llama_model;

// a model was loaded, that /props is to tell of
void common_skip_props_loaded(const llama_model * model);

// {"layers": ..., "scale": ..., "bypass": ..., "n_layer": ..., "n_layer_kept": ..., "bytes_not_loaded": ...,
// "disk_layers": ..., ...} each time it is called, with the memory of that moment
std::function<std::string(bool is_sleeping)> common_skip_props(
    const llama_model * model, const common_skip_tiers & tiers);

// the entries of /v1/models: a model's own, and for each tier in its props the same as NAME@TIER
common_json common_skip_models(const common_json & own, const std::string & props);
