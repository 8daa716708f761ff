// The run-time mask of a context; the patch declares these members of llama_context.

#include "graph/cvec.h"
#include "load/baked.h"
#include "load/resolve.h"
#include "set/spec.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-memory.h"
#include "llama-model.h"

#include <stdexcept>

bool llama_context::skip_can_cvec(int32_t il_start, int32_t il_end) const {
    llama_skip_warn_baked(model);
    const std::string reason = llama_skip_cvec_refusal(model, cparams.skip, llama_skip_cvec_layers(il_start, il_end));
    if (!reason.empty()) {
        LLAMA_LOG_ERROR("skip: %s\n", reason.c_str());
    }
    return reason.empty();
}

void llama_context::skip_check(const llama_skip_set & set) {
    llama_skip_mask directions;
    for (int32_t il = 0; il < (int32_t) model.hparams.n_layer(); ++il) {
        directions.set(il, cvec->tensor_for(il) != nullptr);
    }
    const std::string reason = llama_skip_cvec_refusal(model, set.skip, directions);
    if (!reason.empty()) {
        throw std::invalid_argument("mask: " + reason);
    }
    synchronize();

    const llama_skip prev = cparams.skip;
    cparams.skip          = set.skip;
    try {
        if (sched && !model.hparams.no_alloc) {
            sched_reserve();
            const auto mctx = memory ? memory->init_full() : nullptr;
            graph_reserve(cparams.n_seq_max, cparams.n_seq_max, cparams.n_seq_max, mctx.get(), /*split_only =*/true);
        }
    } catch (...) {
        cparams.skip       = prev;
        sched_need_reserve = true;
        throw;
    }
    cparams.skip = prev;
}

void llama_context::skip_use(const llama_skip_set & set) {
    if (set.skip != cparams.skip) {
        cparams.skip  = set.skip;
        skip_bypasses = set.bypasses; // no graph that is still to run refers to the old ones
    }
}

bool llama_context::skip_can_decode(const llama_batch_ext & batch) {
    if (!skip_disk_unchanged()) { // now, while the memory holds nothing of the batch
        return false;
    }
    try {
        sched_reserve();
    } catch (const std::exception & err) {
        if (!cparams.skip.any()) {
            throw;
        }
        LLAMA_LOG_ERROR("skip: %s\n", err.what());
        sched_need_reserve = true;
        return false;
    }
    if (memory->skip.empty()) {
        return true;
    }
    const llama_skip_mask out = cparams.skip.no_cache();

    for (const auto & token : batch.tokens) {
        for (const auto seq_id : token.seq_ids) {
            const llama_skip_mask missing = memory->skip.masked(seq_id) & ~out;
            if (missing.any()) {
                LLAMA_LOG_ERROR("skip: sequence %d holds tokens that were decoded while blocks %s were masked: those "
                                "blocks have no data for them; remove these tokens or mask the blocks again\n",
                    seq_id, llama_skip_layers_str(missing).c_str());
                return false;
            }
        }
    }
    return true;
}

void llama_context::skip_decoded(const llama_ubatch & ubatch) {
    const llama_skip_mask masked = cparams.skip.no_cache() & ~model.hparams.skip.no_cache();
    if (masked.none()) {
        return;
    }
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        for (int32_t s = 0; s < ubatch.n_seq_id[i]; ++s) {
            memory->skip.add(ubatch.seq_id[i][s], ubatch.pos[i], ubatch.pos[i] + 1, masked);
        }
    }
}
