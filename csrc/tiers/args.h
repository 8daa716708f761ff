#pragma once

// --skip-tier, --skip-load and --skip-masks-max of llama-server: the depths that a request can ask for by name.

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

struct common_arg;
struct common_params;

extern const int32_t common_skip_n_probe; // tokens of a prompt that are measured

struct common_skip_tier_params {
    std::vector<std::pair<std::string, std::string>> tiers; // a name and what it leaves out
    std::vector<std::pair<std::string, int32_t>>     load;  // a name and how many other requests there are, rising
    int32_t                                          n_masks     = 8;     // that requests may make beside the tiers
    bool                                             is_complete = false; // the plans of the model are among them
    size_t                                           n_given     = 0;     // of them; what follows are the plans

    int32_t n_outputs() const; // tokens of a sequence whose logits are read from one batch

    bool        has(const std::string & name) const;
    std::string names() const; // "fast, faster"
};

void common_skip_tier_add_args(const std::function<void(common_arg)> & add_opt);

// Checks what needs no model, and gives the number of tiers. Throws std::invalid_argument.
void common_skip_tier_check(common_skip_tier_params & params);

// The plans in a model's metadata are tiers, too. Tensors of bypasses need memory on devices: --fit leaves room. False
// and a line in the log where --skip-load names no tier.
bool common_skip_find_tiers(common_params & params);

// Whether there are the tiers that --skip-load names; else a line in the log.
bool common_skip_load_ok(const common_skip_tier_params & params);
