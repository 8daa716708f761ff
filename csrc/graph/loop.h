#pragma once

// How the block loop of a graph, as upstream's model files have it, steps over what is left out.

#include "disk/trace.h"
#include "set/skip.h"

// what a graph did about the blocks left out while it was built
struct llama_skip_trace {
    llama_skip_mask stepped;                     // left-out blocks that a block loop stepped over
    llama_skip_mask bypassed;                    // gaps whose bypass was applied, by their first block
    llama_skip_mask zeroed[LLAMA_SKIP_N_HALVES]; // halves left out that were zeros

    llama_skip_disk_trace disk;
};

// `n_layer - 1` in a graph: equal to the index of the last kept block, but the file's last index as a number
struct llama_skip_last {
    int64_t n_last;
    int64_t il_last;

    operator int64_t() const { return n_last; }

    friend bool operator==(int il, const llama_skip_last & last) { return il == last.il_last; }

    template <typename T>
    friend bool operator==(const T &, const llama_skip_last &) = delete;
    template <typename T>
    friend bool operator!=(const T &, const llama_skip_last &) = delete;
    template <typename T>
    friend bool operator<(const T &, const llama_skip_last &) = delete;
    template <typename T>
    friend bool operator<=(const T &, const llama_skip_last &) = delete;
    template <typename T>
    friend bool operator>(const T &, const llama_skip_last &) = delete;
    template <typename T>
    friend bool operator>=(const T &, const llama_skip_last &) = delete;
};

// `n_layer` in a graph: the file's count as a number; `il < n_layer` steps a loop's index over the blocks left out
class llama_skip_n_layer {
public:
    llama_skip_n_layer(int64_t n, const llama_skip & skip, llama_skip_trace & trace, ggml_context * ctx)
        : n(n), skip(skip.any() ? &skip : nullptr), trace(&trace) {
        trace.disk.ctx = skip.disk.any() ? ctx : nullptr;
    }

    operator int64_t() const { return n; }

    friend bool operator<(int & il, const llama_skip_n_layer & bound) {
        if (bound.skip) {
            for (; il < bound.n && bound.skip->out[il]; ++il) {
                bound.trace->stepped.set(il);
            }
        }
        bound.trace->disk.step(il, bound.n);
        return il < bound.n;
    }

    friend bool operator<(int && il, const llama_skip_n_layer & bound) { return il < bound.n; }

    llama_skip_last operator-(int k) const;

    // a spelling that upstream does not use yet has to be looked at before it compiles
    template <typename T>
    friend bool operator<(const T &, const llama_skip_n_layer &) = delete;
    template <typename T>
    friend bool operator<=(const T &, const llama_skip_n_layer &) = delete;
    template <typename T>
    friend bool operator>(const T &, const llama_skip_n_layer &) = delete;
    template <typename T>
    friend bool operator>=(const T &, const llama_skip_n_layer &) = delete;
    template <typename T>
    friend bool operator!=(const T &, const llama_skip_n_layer &) = delete;

private:
    int64_t            n;
    const llama_skip * skip;
    llama_skip_trace * trace;
};
