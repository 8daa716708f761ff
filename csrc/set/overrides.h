#pragma once

// The metadata overrides (llama_model_params.kv_overrides) that say what to leave out. A value longer than one override
// holds goes on in KEY.1, KEY.2, ...

#include "set/names.h"

#include "llama.h"

#include <string>
#include <vector>

struct llama_skip_bypass_tensors; // bypass/bypass.h

struct llama_skip_spec {
    std::string layers; // empty: not given
    std::string scale;
    std::string plan;
    bool        untested = false;

    // those of a plan, which replace the scale of their gap
    std::vector<const llama_skip_bypass_tensors *> bypasses;

    std::string disk;
    std::string disk_scale;
    std::string disk_idle;
    bool        disk_strict = false;

    bool empty() const {
        return layers.empty() && scale.empty() && plan.empty() && disk.empty() && disk_scale.empty() &&
               disk_idle.empty() && !disk_strict;
    }
};

// the spec of a flag's two values, the first a set or a plan
llama_skip_spec llama_skip_make_spec(const std::string & layers, const std::string & scale);

// whether an override says what to leave out, and so never belongs into a file
LLAMA_API bool llama_skip_is_override(const std::string & key);

// overrides: ends with an empty key, may be null; throws std::invalid_argument
llama_skip_spec llama_skip_read_overrides(const llama_model_kv_override * overrides);

// the key under which a flag's value travels: a set or a plan
LLAMA_API const char * llama_skip_key_of(const std::string & layers);

// appends `value` as one or more string overrides; `overrides` must not be terminated yet
LLAMA_API void llama_skip_add_override(
    std::vector<llama_model_kv_override> & overrides, const std::string & key, const std::string & value);
