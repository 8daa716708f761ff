#pragma once

// Depth per request in llama-server: what each request leaves out beyond the server's own set, and who decodes next.
// A batch has one mask; those of different requests take turns. Nothing is reused that was decoded under another mask:
// the tokens of a slot, of the prompt cache and of a slot's file carry theirs, and what was generated without blocks
// that the prompt had is dropped when the request ends.

#include "tiers/request.h"

#include <algorithm>
#include <string>
#include <vector>

struct common_speculative;

class common_skip_tiers {
public:
    common_skip_work work;
    std::string      error; // why the last task was refused

    // Makes the tiers; false and a line in the log where one is refused. A plan of the model's that is refused is taken
    // off the parameters.
    bool load(llama_context * ctx, common_skip_tier_params & params);
    void clear();

    // each tier's name and what it leaves out
    std::vector<std::pair<std::string, std::string>> depths() const;

    // Resolves what a task asks for, with so many others waiting. False: `error` says why it is refused.
    template <class Task, class Slots>
    bool begin(Task & task, const Slots & slots, size_t n_waiting) {
        size_t n_others = n_waiting;
        for (const auto & slot : slots) {
            n_others += slot.is_processing();
        }
        if (task.need_sampling() && !resolve(*task.params.skip, n_others)) {
            return false;
        }
        task.tokens.skip = task.params.skip->prompt_mask();
        for (auto & child : task.child_tasks) {
            child.tokens.skip = task.tokens.skip;
        }
        return true;
    }

    // How many tokens of a slot's prompt come before those that a probe decodes: all of them without one.
    template <class Slot>
    int32_t n_before_probe(const Slot & slot) const {
        const int32_t n_tokens = slot.task->n_tokens();
        const int32_t n        = n_probe(*slot.task->params.skip);
        int32_t       res      = std::max(1, n_tokens - 1 - n);
        for (int32_t i = res; i < n_tokens; ++i) { // media are not decoded again
            res = slot.task->tokens[i] == LLAMA_TOKEN_NULL ? i + 1 : res;
        }
        // an adapter that begins within a prompt is switched on there, a sampler of a back-end reads one token's logits
        const bool can = slot.alora_invocation_start <= 0 && !slot.task->params.sampling.backend_sampling;
        return can && n > 0 && res < n_tokens - 1 ? res : n_tokens;
    }

    // Decodes the last tokens of a prompt but one under each tier that may answer, and at the server's depth, where
    // they stay; the request gets the shallowest tier within its limit. Returns how many tokens were added.
    template <class Slot>
    size_t probe(Slot & slot) {
        const int32_t first = slot.prompt.n_tokens();
        const int32_t last  = slot.task->n_tokens() - 1;
        if (first != n_before_probe(slot) || first >= last) {
            return 0;
        }
        std::vector<llama_token> tokens;
        for (int32_t i = first; i < last; ++i) {
            tokens.push_back(slot.task->tokens[i]);
        }
        common_set_adapter_lora(slot.ctx_tgt, slot.lora);
        if (!measure(
                *slot.task->params.skip, slot.stats.skip, slot.spec, slot.id, slot.prompt.tokens.pos_next(), tokens)) {
            return 0;
        }
        for (const llama_token token : tokens) {
            slot.prompt.tokens.push_back(token);
        }
        slot.stats.n_prompt_processed += tokens.size();
        return tokens.size();
    }

    // The mask of the slots that decode now: every mask of a slot at work has its turn, of a few batches, since another
    // mask is another graph, but of one where that holds a part of a prompt.
    template <class Slots>
    void turn(const Slots & slots) {
        std::vector<common_skip_mask> masks;
        bool                          has_prompt = false;
        for (const auto & slot : slots) {
            if (slot.is_processing()) {
                masks.push_back(slot.skip());
                has_prompt |=
                    has_turn(slot.skip()) && !slot.truncated && slot.prompt.n_tokens() < slot.task->n_tokens();
            }
        }
        next(masks, has_prompt);
    }

    bool has_turn(const common_skip_mask & mask) const { return common_skip_same(current, mask); }

    // the mask that a slot's file was saved under, if it is known
    common_skip_mask saved(const std::string & path);

private:
    struct made {
        std::string      layers;
        common_skip_mask mask;
    };

    llama_context *         ctx = nullptr;
    common_skip_tier_params params;

    std::vector<made> tiers;  // in the order of the parameters
    std::vector<made> others; // the most recently used last

    std::vector<common_skip_mask> order; // the masks at work: the one whose turn it is, then the one that waits longest
    common_skip_mask              current;
    int32_t                       n_batches = 0; // of this turn
    size_t                        level     = 0; // of params.load

    bool             resolve(common_skip_request & request, size_t n_others);
    int32_t          n_probe(const common_skip_request & request) const;
    bool             measure(common_skip_request & request, common_skip_timings & timings, common_speculative * spec,
                    llama_seq_id seq_id, llama_pos pos, const std::vector<llama_token> & tokens);
    common_skip_mask other(const std::string & layers);
    void             next(const std::vector<common_skip_mask> & masks, bool is_over);
    void             set_level(size_t n_others);
};

// A request begins in a slot: what is there of another mask goes.
template <class Slot>
void common_skip_start(Slot & slot) {
    if (!common_skip_same(slot.prompt.tokens.skip, slot.task->tokens.skip)) {
        slot.prompt_clear();
        slot.prompt.tokens.skip = slot.task->tokens.skip;
    }
    slot.stats.skip.depth = slot.task->params.skip->shown();
}

// A request ends: what was generated goes where it lacks data that the next prompt reads, as far back as the memory
// can.
template <class Slot>
void common_skip_end(Slot & slot) {
    const size_t n_tokens = slot.prompt.tokens.get_common_prefix(slot.task->tokens);
    if (!common_skip_lacks(slot.task->tokens.skip, slot.task->params.skip->mask) ||
        slot.prompt.tokens.size() <= n_tokens) {
        return;
    }
    const auto keep = [&](size_t n) {
        slot.prompt.tokens.keep_first(n);
        const llama_pos pos = slot.prompt.tokens.pos_next();
        return llama_memory_seq_rm(llama_get_memory(slot.ctx_tgt), slot.id, pos, -1) &&
               (!slot.ctx_dft || llama_memory_seq_rm(llama_get_memory(slot.ctx_dft), slot.id, pos, -1));
    };
    if (n_tokens > 0 && keep(n_tokens)) {
        return;
    }
    common_skip_use(slot.ctx_tgt, slot.prompt.tokens.skip);
    bool   is_kept     = false;
    auto & checkpoints = slot.prompt.checkpoints;
    while (n_tokens > 0 && !is_kept && !checkpoints.empty()) {
        const auto & last = checkpoints.back();
        if (last.n_tokens <= (int64_t) n_tokens) {
            last.load_tgt(slot.ctx_tgt, slot.id, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
            last.load_dft(slot.ctx_dft, slot.id, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
            common_speculative_set_state(slot.spec, slot.id, last.data_spec);
            is_kept = keep(last.n_tokens);
        }
        if (!is_kept) {
            checkpoints.pop_back();
        }
    }
    common_skip_use(slot.ctx_tgt, slot.skip()); // what else its batch has to do is done under that mask
    if (!is_kept) {
        slot.prompt_clear();
    }
}
