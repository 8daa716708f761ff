#pragma once

// Blocks by their index, and which block a tensor belongs to. Depends on the standard library only.

#include <bitset>
#include <cstdint>
#include <string>

#define LLAMA_SKIP_MAX_LAYERS 512 // LLAMA_MAX_LAYERS

// one bit for each block
using llama_skip_mask = std::bitset<LLAMA_SKIP_MAX_LAYERS>;

// the block that the tensor `name` belongs to, -1: none
int32_t llama_skip_block_of(const std::string & name);

// what holds for blocks of the file, in every loop of a looped model
llama_skip_mask llama_skip_every_loop(const llama_skip_mask & file_blocks, int32_t n_file, int32_t n_loop);

// file index of the kept block number `ordinal`, counted without an upper end
int32_t llama_skip_file_index(const llama_skip_mask & mask, int32_t ordinal);
