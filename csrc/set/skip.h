#pragma once

// What a model and a context leave out. Upstream's llama-hparams.h, llama-cparams.h, llama-memory.h and
// llama-graph.h include this header, so it depends on the standard library only.

#include "disk/trace.h"
#include "set/blocks.h"

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

struct llama_skip_bypass_tensors; // skip-bypass.h
class llama_skip_bypasses;
struct llama_skip_kept; // skip-load.h
struct llama_skip_set;

// the blocks left out, and the bypass of each gap, by the index of the gap's first block
struct llama_skip {
    llama_skip_mask                          out;
    std::array<float, LLAMA_SKIP_MAX_LAYERS> scale;       // y = scale*x, 1 is the identity
    std::array<float, LLAMA_SKIP_MAX_LAYERS> factor;      // the stream meets it at a block even when that is left out
    uint64_t                                 n_bytes = 0; // weights that were not loaded

    // in place of a scale, null for none; the model or the context owns them
    std::array<const llama_skip_bypass_tensors *, LLAMA_SKIP_MAX_LAYERS> bypass = {};

    llama_skip_disk disk; // blocks that stay in the file; one of them that is left out does not run

    // a looped model: a graph has the file's blocks n_loop times, left out in all of them; with a norm between them or not
    int32_t n_loop    = 1;
    bool    loop_norm = false;
    bool    untested  = false; // an architecture that the tests do not cover is allowed

    // of a set that a plan chose: where it is from, and whether the plan was made with other weights
    std::array<char, 256> origin        = {};
    bool                  other_weights = false;

    llama_skip() {
        scale.fill(1.0f);
        factor.fill(1.0f);
    }

    bool any() const { return out.any(); }

    // nothing left out, but what the model says about its blocks
    llama_skip model_only() const;

    // whether the stream is changed in the gap that begins at il
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

    bool operator==(const llama_skip & other) const {
        return out == other.out && scale == other.scale && bypass == other.bypass;
    }
    bool operator!=(const llama_skip & other) const { return !(*this == other); }
};

static_assert(std::is_trivially_copyable<llama_skip>::value, "llama_hparams has to stay trivially copyable");

// what a graph did about the blocks left out while it was built
struct llama_skip_trace {
    llama_skip_mask stepped;  // left-out blocks that a block loop stepped over
    llama_skip_mask bypassed; // gaps whose bypass was applied, by their first block

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

// which tokens of a sequence were decoded while blocks were masked that the model has: those blocks hold nothing for them
class llama_skip_history {
public:
    bool empty() const { return seqs.empty(); }

    void clear() { seqs.clear(); }

    void add(int32_t seq_id, int32_t p0, int32_t p1, const llama_skip_mask & masked);
    void seq_rm(int32_t seq_id, int32_t p0, int32_t p1);
    void seq_cp(int32_t seq_id_src, int32_t seq_id_dst, int32_t p0, int32_t p1);
    void seq_keep(int32_t seq_id);
    void seq_add(int32_t seq_id, int32_t p0, int32_t p1, int32_t shift);
    void seq_div(int32_t seq_id, int32_t p0, int32_t p1, int32_t d);

    // the union of the masks that a sequence's tokens were decoded under; seq_id < 0: of all sequences
    llama_skip_mask masked(int32_t seq_id) const;

private:
    struct span {
        int32_t         p0;
        int32_t         p1; // exclusive
        llama_skip_mask masked;
    };

    std::map<int32_t, std::vector<span>> seqs;
};
