#pragma once

#include "set/blocks.h"

#include <cstdint>
#include <map>
#include <vector>

struct ggml_context;
struct ggml_tensor;

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

    // the last tensor that was created so far, searched from `prev` on
    ggml_tensor * last_tensor(ggml_tensor * prev) const;

private:
    void note_step(int64_t il, int64_t bound);
};
