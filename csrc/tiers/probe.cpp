#include "tiers/probe.h"

#include "common.h"
#include "speculative.h"

#include <algorithm>
#include <cmath>

using logits = std::vector<float>; // of a batch, [n_tokens, n_vocab]

static bool decode(llama_context * ctx, common_batch & batch) {
    return llama_process(ctx, LLAMA_PROCESS_TYPE_DECODE, batch.get()) == 0 && llama_get_logits_ith(ctx, 0) != nullptr;
}

static logits read(llama_context * ctx, int32_t n_tokens, int32_t n_vocab) {
    logits res;
    res.reserve((size_t) n_tokens * n_vocab);
    for (int32_t i = 0; i < n_tokens; ++i) {
        const float * row = llama_get_logits_ith(ctx, i);
        res.insert(res.end(), row, row + n_vocab);
    }
    return res;
}

// the logarithm of what the exponentials of a row add up to
static double log_sum(const float * row, int32_t n) {
    const float most = *std::max_element(row, row + n);
    double      sum  = 0.0;
    for (int32_t i = 0; i < n; ++i) {
        sum += std::exp(row[i] - most);
    }
    return most + std::log(sum);
}

// the mean Kullback-Leibler divergence from p of each of what a batch gave under other masks
static std::vector<double> mean_kld(const logits & p, const std::vector<logits> & others, int32_t n_vocab) {
    std::vector<double> res(others.size());
    std::vector<double> weights(n_vocab);
    for (size_t row = 0; row < p.size(); row += n_vocab) {
        const double log_p = log_sum(&p[row], n_vocab);
        for (int32_t i = 0; i < n_vocab; ++i) {
            weights[i] = std::exp(p[row + i] - (float) log_p);
        }
        for (size_t k = 0; k < others.size(); ++k) {
            const float * q   = &others[k][row];
            double        sum = log_sum(q, n_vocab) - log_p;
            for (int32_t i = 0; i < n_vocab; ++i) {
                sum += weights[i] * (p[row + i] - q[i]);
            }
            res[k] += sum * n_vocab / p.size();
        }
    }
    return res;
}

std::vector<double> common_skip_probe(llama_context * ctx, common_speculative * spec, llama_seq_id seq_id,
    llama_pos pos, const std::vector<llama_token> & tokens, const std::vector<common_skip_mask> & masks) {
    const llama_model * model   = llama_get_model(ctx);
    const int32_t       n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));

    common_batch batch(ctx);
    for (size_t i = 0; i < tokens.size(); ++i) {
        batch.add(tokens[i], pos + i, seq_id, /*output =*/true);
    }
    common_prompt_checkpoint before; // of what cannot take tokens away
    common_skip_use(ctx, nullptr);
    if (llama_model_is_recurrent(model) || llama_model_is_hybrid(model)) {
        before.update_tgt(ctx, seq_id, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
    }
    const auto take_back = [&] {
        common_skip_use(ctx, nullptr);
        before.load_tgt(ctx, seq_id, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
        return llama_memory_seq_rm(llama_get_memory(ctx), seq_id, pos, -1);
    };
    llama_set_embeddings(ctx, false);

    std::vector<logits> masked;
    for (const auto & mask : masks) {
        common_skip_use(ctx, mask);
        const bool ok = decode(ctx, batch);
        if (ok) {
            masked.push_back(read(ctx, tokens.size(), n_vocab));
        }
        if (!take_back() || !ok) {
            return {};
        }
    }
    if (!decode(ctx, batch) || (spec && !common_speculative_process(spec, batch))) {
        take_back();
        return {};
    }
    return mean_kld(read(ctx, tokens.size(), n_vocab), masked, n_vocab);
}
