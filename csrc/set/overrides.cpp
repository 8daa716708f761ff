#include "set/overrides.h"

#include "set/spec.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>

static const size_t n_value_max = sizeof(llama_model_kv_override::val_str) - 1;

static std::string continued(const std::string & key, size_t part) {
    return part == 0 ? key : key + "." + std::to_string(part);
}

// KEY or KEY.N
static bool is_part_of(const std::string & name, const std::string & key) {
    if (name.compare(0, key.size(), key) != 0) {
        return false;
    }
    if (name.size() == key.size()) {
        return true;
    }
    return name[key.size()] == '.' && name.size() > key.size() + 1 &&
           name.find_first_not_of("0123456789", key.size() + 1) == std::string::npos;
}

static bool is_bool(const std::string & key) {
    return key == LLAMA_SKIP_KEY_UNTESTED || key == LLAMA_SKIP_KEY_DISK_STRICT;
}

static bool is_number(const std::string & key) {
    return key == LLAMA_SKIP_KEY_SCALE || key == LLAMA_SKIP_KEY_DISK_SCALE || key == LLAMA_SKIP_KEY_DISK_IDLE;
}

bool llama_skip_is_override(const std::string & key) {
    return is_part_of(key, LLAMA_SKIP_KEY_LAYERS) || is_part_of(key, LLAMA_SKIP_KEY_SCALE) ||
           is_part_of(key, LLAMA_SKIP_KEY_PLAN) || is_part_of(key, LLAMA_SKIP_KEY_DISK) ||
           is_part_of(key, LLAMA_SKIP_KEY_DISK_SCALE) || key == LLAMA_SKIP_KEY_DISK_IDLE || is_bool(key);
}

const char * llama_skip_key_of(const std::string & layers) {
    return llama_skip_is_plan(layers) ? LLAMA_SKIP_KEY_PLAN : LLAMA_SKIP_KEY_LAYERS;
}

llama_skip_spec llama_skip_make_spec(const std::string & layers, const std::string & scale) {
    llama_skip_spec spec;
    (llama_skip_is_plan(layers) ? spec.plan : spec.layers) = layers;
    spec.scale                                             = scale;
    return spec;
}

llama_skip_spec llama_skip_read_overrides(const llama_model_kv_override * overrides) {
    llama_skip_spec                    spec;
    std::map<std::string, std::string> values;
    for (const auto * o = overrides; o != nullptr && o->key[0] != '\0'; ++o) {
        const std::string key(o->key, strnlen(o->key, sizeof(o->key)));
        if (key.compare(0, 5, "skip.") != 0) {
            continue;
        }
        if (!llama_skip_is_override(key)) {
            throw std::invalid_argument(
                key + ": unknown override, known are " LLAMA_SKIP_KEY_LAYERS ", " LLAMA_SKIP_KEY_SCALE
                      ", " LLAMA_SKIP_KEY_PLAN ", " LLAMA_SKIP_KEY_UNTESTED ", " LLAMA_SKIP_KEY_DISK
                      ", " LLAMA_SKIP_KEY_DISK_SCALE ", " LLAMA_SKIP_KEY_DISK_IDLE " and " LLAMA_SKIP_KEY_DISK_STRICT);
        }
        if (is_bool(key)) {
            if (o->tag != LLAMA_KV_OVERRIDE_TYPE_BOOL) {
                throw std::invalid_argument(key + ": has to be a bool, as in " + key + "=bool:true");
            }
            (key == LLAMA_SKIP_KEY_UNTESTED ? spec.untested : spec.disk_strict) |= o->val_bool;
            continue;
        }
        std::string value;
        if (o->tag == LLAMA_KV_OVERRIDE_TYPE_STR) {
            value.assign(o->val_str, strnlen(o->val_str, sizeof(o->val_str)));
        } else if (o->tag == LLAMA_KV_OVERRIDE_TYPE_INT) {
            value = std::to_string(o->val_i64);
        } else if (o->tag == LLAMA_KV_OVERRIDE_TYPE_FLOAT && is_number(key)) {
            value = llama_skip_number_str((float) o->val_f64);
        } else {
            throw std::invalid_argument(key + ": has to be a string, as in " + key + "=str:VALUE");
        }
        values.emplace(key, value); // as in upstream's loader, the first override of a key counts
    }

    const auto take = [&](const std::string & key) {
        std::string value;
        for (size_t part = 0;; ++part) {
            const auto it = values.find(continued(key, part));
            if (it == values.end()) {
                return value;
            }
            if (part == 0 && it->second.empty()) {
                throw std::invalid_argument(key + ": empty value");
            }
            value += it->second;
            values.erase(it);
        }
    };

    spec.layers = take(LLAMA_SKIP_KEY_LAYERS);
    spec.scale  = take(LLAMA_SKIP_KEY_SCALE);
    spec.plan   = take(LLAMA_SKIP_KEY_PLAN);

    spec.disk       = take(LLAMA_SKIP_KEY_DISK);
    spec.disk_scale = take(LLAMA_SKIP_KEY_DISK_SCALE);
    spec.disk_idle  = take(LLAMA_SKIP_KEY_DISK_IDLE);
    if (!values.empty()) {
        throw std::invalid_argument(values.begin()->first + ": continues a value that is not there");
    }
    if (!spec.plan.empty() && !spec.layers.empty()) {
        throw std::invalid_argument(LLAMA_SKIP_KEY_PLAN ": given beside " LLAMA_SKIP_KEY_LAYERS ", give one of them");
    }
    return spec;
}

void llama_skip_add_override(
    std::vector<llama_model_kv_override> & overrides, const std::string & key, const std::string & value) {
    for (size_t part = 0; part == 0 || part * n_value_max < value.size(); ++part) {
        llama_model_kv_override o = {};
        o.tag                     = LLAMA_KV_OVERRIDE_TYPE_STR;

        const std::string name  = continued(key, part);
        const std::string piece = value.substr(part * n_value_max, n_value_max);
        std::memcpy(o.key, name.data(), std::min(name.size(), sizeof(o.key) - 1));
        std::memcpy(o.val_str, piece.data(), piece.size());
        overrides.push_back(o);
    }
}
