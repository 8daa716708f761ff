#include "set/skip.h"

#include <algorithm>

llama_skip llama_skip::model_only() const {
    llama_skip res;
    res.model    = model;
    res.untested = untested;
    res.disk     = disk;
    return res;
}

bool llama_skip::has_bypass(int32_t il) const {
    const auto changed = [](float a) {
        return a != 1.0f;
    };
    return bypass[il] != nullptr ||
           (gap_begins(il) && (changed(scale[il]) ||
                                  std::any_of(model.factor.begin() + il, model.factor.begin() + gap_end(il), changed)));
}

llama_skip_mask llama_skip::file_blocks(const llama_skip_mask & blocks, int32_t n_layer) const {
    const int32_t n_other = LLAMA_SKIP_MAX_LAYERS - n_layer / model.n_loop;
    return blocks << n_other >> n_other;
}

int32_t llama_skip::n_kept(int32_t first, int32_t last) const {
    int32_t n = 0;
    for (int32_t il = first; il < last; ++il) {
        n += !out[il];
    }
    return n;
}

int32_t llama_skip::n_placed(int32_t first, int32_t last) const {
    int32_t n = 0;
    for (int32_t il = first; il < last; ++il) {
        n += !out[il] && !disk.blocks[il];
    }
    return n;
}

int32_t llama_skip::n_file_layers(int32_t n_gpu_layers, int32_t n_layer) const {
    if ((!any() && !disk.any()) || n_gpu_layers <= 0) {
        return n_gpu_layers;
    }
    int32_t il = n_layer;
    for (int32_t n = 1; il > 0 && n < n_gpu_layers;) {
        --il;
        n += n_placed(il, il + 1);
    }
    // all of them: the other blocks before them count too, or upstream would not see a full offload
    return n_placed(0, il) == 0 ? n_layer + 1 : n_layer + 1 - il;
}

int32_t llama_skip::gap_end(int32_t il) const {
    while (il < LLAMA_SKIP_MAX_LAYERS && out[il]) {
        ++il;
    }
    return il;
}

int32_t llama_skip::gap_size(int32_t il) const {
    if (gap_begins(il)) {
        return gap_end(il) - il;
    }
    const bool behind_half = il > 0 && !out[il] && (half[LLAMA_SKIP_MIXER] | half[LLAMA_SKIP_FFN])[il - 1];
    return behind_half ? 0 : -1;
}

llama_skip llama_skip_added(const llama_skip & loaded, const llama_skip & skip) {
    llama_skip res;
    res.out = skip.out & ~loaded.out;
    for (int half = 0; half < LLAMA_SKIP_N_HALVES; ++half) {
        res.half[half] = skip.half[half] & ~loaded.half[half];
    }
    return res;
}

bool llama_skip_tensor(const llama_skip & skip, const std::string & name) {
    const int32_t il = llama_skip_block_of(name);
    return il >= 0 && skip.out[il];
}

bool llama_skip_matrix(const llama_skip & skip, const std::string & name, int n_dims) {
    const int32_t il   = llama_skip_block_of(name);
    const int     half = llama_skip_half_of(name, n_dims);
    return il >= 0 && (skip.out[il] || (half >= 0 && skip.half[half][il]));
}
