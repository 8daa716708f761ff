#pragma once

// What is known of an architecture where its blocks are left out. All rules stand in one table, in arch.cpp.

#include "set/skip.h"

#include "llama-arch.h"

#include <string>

struct llama_hparams;
struct llama_model;

struct llama_skip_arch {
    bool tested = false; // the tests compare it with blocks left out; docs/architectures.md has the same list

    // why no block can be left out, null where they can
    const char * refusal = nullptr;

    // why this half of no block can go alone, null where it may
    const char * half_refusal[LLAMA_SKIP_N_HALVES] = {};

    // why this set cannot, empty where it can
    std::string (*set_refusal)(const llama_hparams & hparams, const llama_skip & skip) = nullptr;

    // whether build_inp_embd() hands block 0 its input as it is, so that a gap at block 0 can have a bypass
    bool plain_embd = false;

    // whether image features are added to the stream at block il (deepstack)
    bool (*injects)(const llama_hparams & hparams, int32_t il) = nullptr;

    // the stream is multiplied at each block, by this tensor of one element, or at every rescale_every_n_layers-th
    const char * factor_tensor = nullptr;
    float        rescale       = 1.0f;

    // what a looped model says of its loops
    void (*loops)(const llama_model & model, llama_skip_model & facts) = nullptr;

    // a control vector is applied behind feed-forward blocks only
    bool cvec_at_ffn = false;

    // a draft head reads the KV caches of so many last blocks of its target
    int32_t n_target_caches = 0;

    // the stream enters the first block as this tensor, null: as what the block's first norm reads
    const char * input_name = nullptr;
};

llama_skip_arch llama_skip_arch_of(llm_arch arch);
