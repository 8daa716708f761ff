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

// A block is two branches that write to the residual stream: the mixer (attention, a recurrent state) and the
// feed-forward.
enum llama_skip_half : int { LLAMA_SKIP_MIXER, LLAMA_SKIP_FFN, LLAMA_SKIP_N_HALVES };

// the words behind ':' in the text forms
extern const char * const llama_skip_half_names[LLAMA_SKIP_N_HALVES];

// The half that a block's tensor goes with, -1: neither. Norms and vectors stay, whichever branch they stand in.
int llama_skip_half_of(const std::string & name, int n_dims);

// whether it is what a half's output comes from
bool llama_skip_ends_half(const std::string & name);

// what holds for blocks of the file, in every loop of a looped model
llama_skip_mask llama_skip_every_loop(const llama_skip_mask & file_blocks, int32_t n_file, int32_t n_loop);

// file index of the kept block number `ordinal`, counted without an upper end
int32_t llama_skip_file_index(const llama_skip_mask & mask, int32_t ordinal);
