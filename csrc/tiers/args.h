#pragma once

// --skip-tier, --skip-load and --skip-masks-max of llama-server: the depths that a request can ask for by name.

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

struct common_arg;
struct common_params;

struct common_skip_tier_params {
    std::vector<std::pair<std::string, std::string>> tiers; // a name and what it leaves out
    std::vector<std::pair<std::string, int32_t>>     load;  // a name and how many other requests there are, rising
    int32_t                                          n_masks = 8; // that requests may make beside the tiers
    int32_t n_probe = 32; // tokens of a prompt that are measured: benchmarks/probe.py

    int32_t n_outputs() const { return tiers.empty() ? 1 : n_probe; } // of a sequence
    bool    is_complete = false;                                      // the plans of the model are among them

    bool        has(const std::string & name) const;
    std::string names() const; // "fast, faster"
};

void common_skip_tier_add_args(const std::function<void(common_arg)> & add_opt);

// Checks what needs no model. Throws std::invalid_argument.
void common_skip_tier_check(const common_skip_tier_params & params);

// The plans in a model's metadata are tiers, too. Tensors of bypasses need memory on devices: --fit leaves room.
void common_skip_find_tiers(common_params & params);
