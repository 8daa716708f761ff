#include "context/history.h"

#include <algorithm>
#include <limits>

// as in llama_memory_seq_rm: a negative bound is open
static int32_t pos_first(int32_t p0) {
    return p0 < 0 ? 0 : p0;
}

static int32_t pos_last(int32_t p1) {
    return p1 < 0 ? std::numeric_limits<int32_t>::max() : p1;
}

void llama_skip_history::add(int32_t seq_id, int32_t p0, int32_t p1, const llama_skip_mask & masked) {
    if (masked.none() || p0 >= p1) {
        return;
    }
    auto & spans = seqs[seq_id];
    if (!spans.empty() && spans.back().p1 == p0 && spans.back().masked == masked) {
        spans.back().p1 = p1;
    } else {
        spans.push_back({ p0, p1, masked });
    }
}

void llama_skip_history::seq_rm(int32_t seq_id, int32_t p0, int32_t p1) {
    p0 = pos_first(p0);
    p1 = pos_last(p1);

    for (auto it = seqs.begin(); it != seqs.end();) {
        if (seq_id >= 0 && it->first != seq_id) {
            ++it;
            continue;
        }
        std::vector<span> left;
        for (const auto & s : it->second) {
            if (s.p0 < p0) {
                left.push_back({ s.p0, std::min(s.p1, p0), s.masked });
            }
            if (s.p1 > p1) {
                left.push_back({ std::max(s.p0, p1), s.p1, s.masked });
            }
        }
        it->second = std::move(left);
        it         = it->second.empty() ? seqs.erase(it) : std::next(it);
    }
}

void llama_skip_history::seq_cp(int32_t seq_id_src, int32_t seq_id_dst, int32_t p0, int32_t p1) {
    const auto it = seqs.find(seq_id_src);
    if (it == seqs.end() || seq_id_src == seq_id_dst) {
        return;
    }
    const std::vector<span> src = it->second;
    for (const auto & s : src) {
        add(seq_id_dst, std::max(s.p0, pos_first(p0)), std::min(s.p1, pos_last(p1)), s.masked);
    }
}

void llama_skip_history::seq_keep(int32_t seq_id) {
    for (auto it = seqs.begin(); it != seqs.end();) {
        it = it->first == seq_id ? std::next(it) : seqs.erase(it);
    }
}

void llama_skip_history::seq_add(int32_t seq_id, int32_t p0, int32_t p1, int32_t shift) {
    const auto it = seqs.find(seq_id);
    if (it == seqs.end() || shift == 0) {
        return;
    }
    p0 = pos_first(p0);
    p1 = pos_last(p1);

    std::vector<span> moved;
    for (const auto & s : it->second) {
        const int32_t a = std::max(s.p0, p0);
        const int32_t b = std::min(s.p1, p1);
        if (a >= b) {
            moved.push_back(s);
            continue;
        }
        if (s.p0 < a) {
            moved.push_back({ s.p0, a, s.masked });
        }
        // tokens that are shifted below position 0 are removed from the memory
        if (b + shift > 0) {
            moved.push_back({ std::max(a + shift, 0), b + shift, s.masked });
        }
        if (b < s.p1) {
            moved.push_back({ b, s.p1, s.masked });
        }
    }
    it->second = std::move(moved);
}

void llama_skip_history::seq_div(int32_t seq_id, int32_t p0, int32_t p1, int32_t d) {
    const auto it = seqs.find(seq_id);
    if (it == seqs.end() || d <= 1) {
        return;
    }
    // a span that is partly divided covers both its old and its new positions
    for (auto & s : it->second) {
        const int32_t a = std::max(s.p0, pos_first(p0));
        const int32_t b = std::min(s.p1, pos_last(p1));
        if (a >= b) {
            continue;
        }
        const bool whole = a == s.p0 && b == s.p1;
        s.p1             = whole ? (b - 1) / d + 1 : s.p1;
        s.p0             = std::min(s.p0, a / d);
    }
}

llama_skip_mask llama_skip_history::masked(int32_t seq_id) const {
    llama_skip_mask res;
    for (const auto & [id, spans] : seqs) {
        if (seq_id >= 0 && id != seq_id) {
            continue;
        }
        for (const auto & s : spans) {
            res |= s.masked;
        }
    }
    return res;
}
