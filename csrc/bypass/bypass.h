#pragma once

// Bypasses that have tensors: y = a.x + U(Vz) + b in a gap, where x is the residual stream, and z = x or what a norm
// makes of it. They come from a plan file in GGUF (docs/metadata.md).

#include "set/skip.h"

#include "ggml.h"

#include <string>
#include <vector>

struct llm_graph_context;

// of one gap
struct llama_skip_bypass_tensors {
    int32_t     first    = 0;     // block of the gap
    int32_t     n_blocks = 0;     // 0: what the block before leaves out
    float       norm_eps = -1.0f; // z = x / sqrt(mean(x^2) + norm_eps); below 0: z = x
    std::string hash;             // of all that it computes with; empty before the data is read

    ggml_tensor * a = nullptr; // [n_embd], null: 1
    ggml_tensor * b = nullptr; // [n_embd], null: 0
    ggml_tensor * u = nullptr; // [rank, n_embd], null with v: no U(Vz)
    ggml_tensor * v = nullptr; // [n_embd, rank]

    std::vector<ggml_tensor *> tensors() const; // those there are

    int64_t rank() const { return v ? v->ne[1] : 0; }

    size_t n_bytes() const;
};

// "linear (rank 64) at 13, affine at 25, 0.42 MiB"; empty when there is none
std::string llama_skip_bypass_str(const llama_skip & skip);

// "13:0123456789abcdef,25:..."; empty when there is none
std::string llama_skip_bypass_hashes(const llama_skip & skip);

// y for x, as nodes of the graph behind block il
ggml_tensor * llama_skip_apply_bypass(
    const llm_graph_context & llm, ggml_tensor * x, const llama_skip_bypass_tensors & bypass, int il);
