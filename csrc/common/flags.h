#pragma once

// Flags that become overrides.

#include "llama.h"

#include <initializer_list>
#include <string>
#include <vector>

// an override of a key that begins with `key`
bool common_skip_has_override(const std::vector<llama_model_kv_override> & overrides, const std::string & key);

// the override `key`, or a continuation of its value
bool common_skip_has_key(const std::vector<llama_model_kv_override> & overrides, const std::string & key);

// `same`: the keys of overrides that say the same as the flag; throws std::invalid_argument where one is there
void common_skip_add_flag(std::vector<llama_model_kv_override> & overrides, const char * flag,
    std::initializer_list<const char *> same, const char * key, const std::string & value);

void common_skip_add_true(std::vector<llama_model_kv_override> & overrides, const char * key);

// An empty value would otherwise look like a flag that was not given. Exits: to what a flag throws upstream adds its
// usage.
const std::string & common_skip_not_empty(const char * flag, const std::string & value);
