#pragma once

// Flags that become overrides, and those of disk blocks.

#include "llama.h"

#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

struct common_arg;
struct common_params;

// an override of a key that begins with `key`
bool common_skip_has_override(const std::vector<llama_model_kv_override> & overrides, const std::string & key);

// the override `key`, or a continuation of its value
bool common_skip_has_key(const std::vector<llama_model_kv_override> & overrides, const std::string & key);

// `same`: the keys of overrides that say the same as the flag; throws std::invalid_argument where one is there
void common_skip_add_flag(std::vector<llama_model_kv_override> & overrides, const char * flag,
    std::initializer_list<const char *> same, const char * key, const std::string & value);

void common_skip_add_true(std::vector<llama_model_kv_override> & overrides, const char * key);

// --disk-layers, --disk-scale, --disk-strict and --disk-idle
void common_skip_disk_add_args(const std::function<void(common_arg)> & add_opt);

// what the grammar refuses; throws std::invalid_argument
void common_skip_disk_check(const common_params & params);

// a model was loaded, that /props is to tell of
void common_skip_props_loaded(const llama_model * model);

// turns the flags into overrides
void common_skip_disk_finish(common_params & params);
