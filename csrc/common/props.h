#pragma once

// What llama-server tells about a model in /props.

#include <functional>
#include <string>

struct llama_model;

// a model was loaded, that /props is to tell of
void common_skip_props_loaded(const llama_model * model);

// {"layers": ..., "scale": ..., "bypass": ..., "n_layer": ..., "n_layer_kept": ..., "bytes_not_loaded": ...,
// "disk_layers": ..., ...} each time it is called, with the memory of that moment
std::function<std::string(bool is_sleeping)> common_skip_props(const llama_model * model);
