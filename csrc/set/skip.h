#pragma once

// What a model and a context leave out. hooks.h includes this header into upstream's, so it depends on the standard
// library only.

#include "set/blocks.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <type_traits>

struct llama_skip_bypass_tensors; // bypass/bypass.h

// what a model says about its blocks, whatever is left out of it
struct llama_skip_model {
    std::array<float, LLAMA_SKIP_MAX_LAYERS> factor; // the stream meets it at a block even when that is left out

    // a looped model: a graph has the file's blocks n_loop times, left out in all of them; with a norm between them or
    // not
    int32_t n_loop    = 1;
    bool    loop_norm = false;

    llama_skip_mask present[LLAMA_SKIP_N_HALVES]; // the blocks that have this half
    llama_skip_mask stateful;                     // those whose mixer keeps more than keys and values

    llama_skip_model() { factor.fill(1.0f); }
};

// of a set that a plan chose: where it is from, and whether the plan was made with other weights
struct llama_skip_origin {
    std::array<char, 256> text          = {};
    bool                  other_weights = false;
};

// Disk blocks of a model: their tensors are mapped from the file and never on a device, they run on the host, and their
// output is y = x + S*(f(x) - x).
struct llama_skip_disk {
    llama_skip_mask                          blocks;
    std::array<float, LLAMA_SKIP_MAX_LAYERS> scale;       // S, 1 is the block as it is
    uint64_t                                 n_bytes = 0; // of their tensors

    bool  strict = false; // a block's pages are handed back when it has run
    float idle   = 0.0f;  // seconds without work after which all pages are, 0: never

    llama_skip_disk() { scale.fill(1.0f); }

    bool any() const { return blocks.any(); }
};

// the blocks left out, and the bypass of each gap, by the index of the gap's first block
struct llama_skip {
    llama_skip_mask out;
    llama_skip_mask half[LLAMA_SKIP_N_HALVES];            // of blocks that run: it adds zeros to the stream
    std::array<float, LLAMA_SKIP_MAX_LAYERS> scale;       // y = scale*x, 1 is the identity
    uint64_t                                 n_bytes = 0; // weights that were not loaded

    // in place of a scale, null for none; the model or the context owns them
    std::array<const llama_skip_bypass_tensors *, LLAMA_SKIP_MAX_LAYERS> bypass = {};

    llama_skip_disk disk; // blocks that stay in the file; one of them that is left out does not run

    llama_skip_model  model;
    llama_skip_origin origin;

    bool untested = false; // an architecture that the tests do not cover is allowed

    llama_skip() { scale.fill(1.0f); }

    bool any_half() const { return half[LLAMA_SKIP_MIXER].any() || half[LLAMA_SKIP_FFN].any(); }
    bool any() const { return out.any() || any_half(); }

    // the blocks that write no cache; a feed-forward leaves the cache whole
    llama_skip_mask no_cache() const { return out | half[LLAMA_SKIP_MIXER]; }

    // the blocks of which nothing runs
    llama_skip_mask empty() const { return out | (half[LLAMA_SKIP_MIXER] & half[LLAMA_SKIP_FFN]); }

    // nothing left out, but what the model says about its blocks
    llama_skip model_only() const;

    // whether the stream is changed in the gap that begins at il, or there for a half
    bool has_bypass(int32_t il) const;

    // those of the first loop
    llama_skip_mask file_blocks(int32_t n_layer) const { return file_blocks(out, n_layer); }
    llama_skip_mask file_blocks(const llama_skip_mask & blocks, int32_t n_layer) const;

    // the blocks that remain in [first, last)
    int32_t n_kept(int32_t first, int32_t last) const;

    // those of them that can be on a device: a disk block is on none
    int32_t n_placed(int32_t first, int32_t last) const;

    bool gap_begins(int32_t il) const { return out[il] && (il == 0 || !out[il - 1]); }

    // -ngl counts such blocks and the output: the count in the numbering of the file that places them alike
    int32_t n_file_layers(int32_t n_gpu_layers, int32_t n_layer) const;

    // one past the last block of the gap that begins at il
    int32_t gap_end(int32_t il) const;

    // The blocks of what a bypass at il stands for: those of the gap that begins there, 0 for what the block before
    // leaves out, -1 for nothing.
    int32_t gap_size(int32_t il) const;

    bool operator==(const llama_skip & other) const {
        return out == other.out && std::equal(std::begin(half), std::end(half), std::begin(other.half)) &&
               scale == other.scale && bypass == other.bypass;
    }
    bool operator!=(const llama_skip & other) const { return !(*this == other); }
};

// what `skip` leaves out beyond `loaded`
llama_skip llama_skip_added(const llama_skip & loaded, const llama_skip & skip);

static_assert(std::is_trivially_copyable<llama_skip>::value, "llama_hparams has to stay trivially copyable");

// whether the tensor `name` belongs to a block that is left out
bool llama_skip_tensor(const llama_skip & skip, const std::string & name);

// whether it belongs to one, or is a matrix of a half that is
bool llama_skip_matrix(const llama_skip & skip, const std::string & name, int n_dims);
