#pragma once

#include "set/blocks.h"

#include <map>
#include <vector>

// which tokens of a sequence were decoded while blocks were masked that the model has: those blocks hold nothing for
// them
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
