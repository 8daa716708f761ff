#pragma once

// What the values are called: the keys of the overrides, and their names in messages.

#include <string>

#define LLAMA_SKIP_KEY_LAYERS "skip.layers"
#define LLAMA_SKIP_KEY_SCALE  "skip.scale"
#define LLAMA_SKIP_KEY_PLAN   "skip.plan" // plan/plan.h, in place of layers

#define LLAMA_SKIP_KEY_UNTESTED "skip.untested" // bool

#define LLAMA_SKIP_KEY_DISK        "skip.disk"        // as skip.layers
#define LLAMA_SKIP_KEY_DISK_SCALE  "skip.disk_scale"  // S or N:S,...
#define LLAMA_SKIP_KEY_DISK_STRICT "skip.disk_strict" // bool
#define LLAMA_SKIP_KEY_DISK_IDLE   "skip.disk_idle"   // seconds

// how messages name the two values
struct llama_skip_names {
    std::string layers = LLAMA_SKIP_KEY_LAYERS;
    std::string scale  = LLAMA_SKIP_KEY_SCALE;

    std::string disk       = LLAMA_SKIP_KEY_DISK;
    std::string disk_scale = LLAMA_SKIP_KEY_DISK_SCALE;
    std::string disk_idle  = LLAMA_SKIP_KEY_DISK_IDLE;
};

// the names of all values, in the style of those two: flags, arguments in Python or overrides
llama_skip_names llama_skip_names_for(const std::string & layers, const std::string & scale);
