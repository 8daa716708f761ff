#pragma once

// Control vectors where blocks are left out: the stream meets their directions all the same.

#include "set/skip.h"

#include <string>

struct ggml_tensor;
struct llama_model;
struct llm_graph_context;

// Multiplies by the factors and adds the directions of the gap behind block `il` (-1: at block 0) to what its bypass
// left, in the order of the blocks.
ggml_tensor * llama_skip_cvec(const llm_graph_context & llm, ggml_tensor * cur, int il);

// The blocks that llama_set_adapter_cvec() gives a direction: upstream has none at block 0.
llama_skip_mask llama_skip_cvec_layers(int32_t il_start, int32_t il_end);

// Why one of these directions has no place in a graph of the architecture; empty if all have one.
std::string llama_skip_cvec_refusal(
    const llama_model & model, const llama_skip & skip, const llama_skip_mask & directions);
