#pragma once

// How much a mask changes what a model says about a prompt.

#include "tiers/request.h"

#include <vector>

struct common_speculative;

// Mean KL divergence in nats, from what the server's own set gives to what each mask gives, of the next-token
// distributions behind `tokens`: they are decoded at `pos` of a sequence under each mask, taken away again, and at last
// decoded under the server's own set, where they stay. Empty, with the sequence as it was, where that is not possible.
std::vector<double> common_skip_probe(llama_context * ctx, common_speculative * spec, llama_seq_id seq_id,
    llama_pos pos, const std::vector<llama_token> & tokens, const std::vector<common_skip_mask> & masks);
