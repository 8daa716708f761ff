#pragma once

// Disk blocks: their tensors are mapped from the file and never on a device, they run on the host, and their output is
// y = x + S*(f(x) - x). skip.h includes this header, so it depends on the standard library only.

#include "set/blocks.h"

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

struct ggml_context;
struct ggml_tensor;
struct llama_skip;

// the disk blocks of a model
struct llama_skip_disk {
    llama_skip_mask                          blocks;
    std::array<float, LLAMA_SKIP_MAX_LAYERS> scale;       // S, 1 is the block as it is
    uint64_t                                 n_bytes = 0; // of their tensors

    bool  strict = false; // a block's pages are handed back when it has run
    float idle   = 0.0f;  // seconds without work after which all pages are, 0: never

    llama_skip_disk() { scale.fill(1.0f); }

    bool any() const { return blocks.any(); }
};

// what a graph does about disk blocks while it is built
struct llama_skip_disk_trace {
    // the tensors that were created for a block: those behind `before` (null: from the first on), up to `last`
    struct span {
        int32_t       il;
        ggml_tensor * before;
        ggml_tensor * last;
    };

    ggml_context *    ctx = nullptr; // null without disk blocks
    std::vector<span> spans;         // of every block that the loop of the architecture stepped on
    bool              is_open = false;

    std::map<int32_t, ggml_tensor *> input;  // what the first norm of a block reads
    std::map<int32_t, ggml_tensor *> output; // the last node of each disk block in the graph
    llama_skip_mask                  scaled; // those with their S applied

    // The loop has come to a block, or to its end; `bound` is n_layer. Without disk blocks nothing is noted.
    void step(int64_t il, int64_t bound) {
        if (ctx != nullptr) {
            note_step(il, bound);
        }
    }

private:
    void note_step(int64_t il, int64_t bound);
};

// "2:0.5,4:0.25" for the disk blocks of `skip` that run and whose S is not 1
std::string llama_skip_disk_scale_str(const llama_skip & skip);
