#include "common/flags.h"

#include "set/overrides.h"

#include "common.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

bool common_skip_has_override(const std::vector<llama_model_kv_override> & overrides, const std::string & key) {
    for (const auto & o : overrides) {
        if (std::string(o.key).compare(0, key.size(), key) == 0) {
            return true;
        }
    }
    return false;
}

bool common_skip_has_key(const std::vector<llama_model_kv_override> & overrides, const std::string & key) {
    return common_skip_has_override(overrides, key + ".") ||
           std::any_of(overrides.begin(), overrides.end(), [&](const auto & o) { return key == o.key; });
}

void common_skip_add_flag(std::vector<llama_model_kv_override> & overrides, const char * flag,
    std::initializer_list<const char *> same, const char * key, const std::string & value) {
    if (value.empty()) {
        return;
    }
    for (const char * other : same) {
        if (common_skip_has_key(overrides, other)) {
            throw std::invalid_argument(
                string_format("error: %s: also given as --override-kv %s, use one of them", flag, other));
        }
    }
    llama_skip_add_override(overrides, key, value);
}

void common_skip_add_true(std::vector<llama_model_kv_override> & overrides, const char * key) {
    llama_model_kv_override o = {};
    o.tag                     = LLAMA_KV_OVERRIDE_TYPE_BOOL;
    o.val_bool                = true;
    snprintf(o.key, sizeof(o.key), "%s", key);
    overrides.push_back(o);
}

const std::string & common_skip_not_empty(const char * flag, const std::string & value) {
    if (value.empty()) {
        fprintf(stderr, "error: %s: the value is empty\n", flag);
        exit(1);
    }
    return value;
}
