#include "set/blocks.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <initializer_list>

int32_t llama_skip_block_of(const std::string & name) {
    int il = -1;
    // the blocks of an encoder without a decoder are called enc.blk
    const bool is_block = sscanf(name.c_str(), "blk.%d.", &il) == 1 || sscanf(name.c_str(), "enc.blk.%d.", &il) == 1;
    return is_block && il >= 0 && il < LLAMA_SKIP_MAX_LAYERS ? il : -1;
}

const char * const llama_skip_half_names[LLAMA_SKIP_N_HALVES] = { "attn", "ffn" };

// the name behind "blk.N."
static std::string part_of(const std::string & name) {
    size_t pos = name.find("blk.");
    pos        = pos == std::string::npos ? pos : name.find('.', pos + 4);
    return pos == std::string::npos ? "" : name.substr(pos + 1);
}

static bool begins_with_one_of(const std::string & text, std::initializer_list<const char *> words) {
    return std::any_of(
        words.begin(), words.end(), [&](const char * word) { return text.compare(0, strlen(word), word) == 0; });
}

int llama_skip_half_of(const std::string & name, int n_dims) {
    const std::string part = part_of(name);
    if (n_dims < 2 || part.find("norm") != std::string::npos) {
        return -1;
    }
    if (begins_with_one_of(part, { "attn_", "ssm_", "time_mix_", "shortconv.", "indexer" })) {
        return LLAMA_SKIP_MIXER;
    }
    return begins_with_one_of(part, { "ffn_", "exp_probs_b", "channel_mix_" }) ? LLAMA_SKIP_FFN : -1;
}

bool llama_skip_ends_half(const std::string & name) {
    return begins_with_one_of(part_of(name), { "attn_output", "attn_o.", "ssm_out", "time_mix_output",
                                                 "shortconv.out_proj", "ffn_down", "channel_mix_value" });
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
