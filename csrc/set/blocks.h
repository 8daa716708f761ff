#pragma once

#include <bitset>

#define LLAMA_SKIP_MAX_LAYERS 512 // LLAMA_MAX_LAYERS

// one bit for each block
using llama_skip_mask = std::bitset<LLAMA_SKIP_MAX_LAYERS>;
