#include "set/blocks.h"

#include <cstdio>

int32_t llama_skip_block_of(const std::string & name) {
    int il = -1;
    // the blocks of an encoder without a decoder are called enc.blk
    const bool is_block = sscanf(name.c_str(), "blk.%d.", &il) == 1 || sscanf(name.c_str(), "enc.blk.%d.", &il) == 1;
    return is_block && il >= 0 && il < LLAMA_SKIP_MAX_LAYERS ? il : -1;
}

llama_skip_mask llama_skip_every_loop(const llama_skip_mask & file_blocks, int32_t n_file, int32_t n_loop) {
    llama_skip_mask res;
    for (int32_t loop = 0; loop < n_loop; ++loop) {
        res |= file_blocks << (loop * n_file);
    }
    return res;
}

int32_t llama_skip_file_index(const llama_skip_mask & mask, int32_t ordinal) {
    int32_t il = 0;
    for (;; ++il) {
        const bool out = il < (int32_t) mask.size() && mask[il];
        if (!out && ordinal-- == 0) {
            return il;
        }
    }
}
