#pragma once

// The text forms of a skip set and of its scales.
//   SPEC  := none | ITEM[,ITEM...]     ITEM := N | N-M (inclusive) | N-M+STEP, with :attn or :ffn behind it for a half
//                                      (';' also separates items)
//   SCALE := A | N:A[,N:A...]          N is the first block of a gap, or a disk block
// All functions throw std::invalid_argument with a message that starts with the name they are given.

#include "set/skip.h"

#include <string>
#include <utility>
#include <vector>

struct llama_skip_range {
    int32_t first;
    int32_t last; // inclusive
    int32_t step;
    int     half = -1; // llama_skip_half, or the block
};

using llama_skip_ranges = std::vector<llama_skip_range>;

// the gap at `first` is -1 for "every gap"
using llama_skip_scales = std::vector<std::pair<int32_t, float>>;

// whether a text is a plan (plan/plan.h) and no set
bool llama_skip_is_plan(const std::string & text);

llama_skip_ranges llama_skip_parse_layers(const std::string & name, const std::string & spec);

// the same where a half has no meaning
llama_skip_ranges llama_skip_parse_blocks(const std::string & name, const std::string & spec);
llama_skip_scales llama_skip_parse_scale(
    const std::string & name, const std::string & spec, const char * each = "gap", const char * one = "gap at block");

// the blocks, or those of whom a half, that ranges name in a model with blocks 0 .. n_layer-1
llama_skip_mask llama_skip_named_layers(
    const std::string & name, const llama_skip_ranges & ranges, int32_t n_layer, int half = -1);

// Sets skip.out and skip.half; one block has to stay.
void llama_skip_resolve_layers(
    const std::string & name, const llama_skip_ranges & ranges, int32_t n_layer, llama_skip & skip);

// sets skip.scale for the gaps of skip.out
void llama_skip_resolve_scale(const std::string & name, const llama_skip_scales & scales, llama_skip & skip);

// "13-14,25", with `end` behind each item; empty for an empty set
std::string llama_skip_layers_str(const llama_skip_mask & mask, const std::string & end = "");

// "13-14,3:attn,25:ffn": what is left out, of blocks 0 .. n_layer-1
std::string llama_skip_set_str(const llama_skip & skip, int32_t n_layer = LLAMA_SKIP_MAX_LAYERS);

// "13:0.5,25:1.1", only gaps whose scale is not 1; empty when there is none
std::string llama_skip_scale_str(const llama_skip & skip);

// "2:0.5,4:0.25" for the disk blocks that run and whose S is not 1
std::string llama_skip_disk_scale_str(const llama_skip & skip);

// the shortest of 6 and 9 digits that is read back as the same float, in the C locale
std::string llama_skip_number_str(float value);
