#pragma once

#include "load/resolve.h"

#include "llama.h"

#include <memory>
#include <string>

struct llama_model;

// What llama_skip_set_mask() leaves out of a loaded model, the model's set among it, with the bypasses of a plan in
// memory. Both texts may be null. Throws std::invalid_argument, std::runtime_error for what cannot be read or
// allocated.
llama_skip_set llama_skip_make_mask(const llama_model & model, const char * layers, const char * scale);

// A mask that a context has run a graph under, to be set as often as wished.
struct llama_skip_made_mask : llama_skip_set {
    std::string layers; // in the form of the flag
    std::string tag;    // what states that are saved under it begin with

    // whether tokens decoded under this mask have no data that decoding under another one, null for the model's own
    // set, reads
    LLAMA_API bool lacks(const llama_skip_made_mask * other) const;

    // blocks and halves of blocks
    double n_left_out() const { return skip.out.count() + (skip.half[0].count() + skip.half[1].count()) / 2.0; }

    const llama_skip * loaded; // the model's own
};

// Makes what llama_skip_set_mask() sets; the context keeps its mask. Throws as the function above.
LLAMA_API std::shared_ptr<const llama_skip_made_mask> llama_skip_make_mask(
    llama_context & ctx, const std::string & layers);

// Sets it, null for what the model leaves out; costs nothing but the next graph.
LLAMA_API void llama_skip_use_mask(llama_context & ctx, const llama_skip_made_mask * mask);
