#pragma once

// What a request to llama-server says about its depth, and what is told of it.

#include "llama.h"

#include "tiers/args.h"

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

class common_json;
struct llama_skip_made_mask; // context/mask.h

// null: what the server was started with
using common_skip_mask = std::shared_ptr<const llama_skip_made_mask>;

bool common_skip_same(const common_skip_mask & a, const common_skip_mask & b);

void common_skip_use(llama_context * ctx, const common_skip_mask & mask);

// whether cells of tokens decoded under `mask` lack data that decoding under `prompt` reads
bool common_skip_lacks(const common_skip_mask & prompt, const common_skip_mask & mask);

// what a request asks for; shared by the completions of one prompt
struct common_skip_request {
    std::string tier;            // a tier's name, or empty
    std::string layers;          // a set; empty: nothing was said
    bool        prompt  = false; // the prompt is masked too
    double      max_kld = -1;    // nats a token that may be lost; below 0: no limit

    // made in the main loop
    bool                                                  by_load = false; // its tier is that of the load
    common_skip_mask                                      mask;            // of what is generated
    std::vector<std::pair<std::string, common_skip_mask>> candidates;      // to be measured, the shallowest first

    // The fields "skip_layers", "skip_prompt" and "skip_max_kld" of a body, and the tier in "model". Throws
    // std::invalid_argument.
    void read(const common_json & body, const common_skip_tier_params & params);

    const common_skip_mask & prompt_mask() const;

    std::string shown() const; // the tier, else the set
    common_json to_json() const;
};

// what the timings of an answer say
struct common_skip_timings {
    std::string depth;         // the tier, else the set, empty for neither
    double      kld      = -1; // that was measured; below 0: it was not
    double      probe_ms = 0;

    void write(common_json & timings) const;
};

// what changing and measuring depths took
struct common_skip_work {
    uint64_t n_switches = 0;
    uint64_t n_probes   = 0;
    double   probe_ms   = 0;
};

// what /metrics counts for each tier; sets that are none are one
struct common_skip_metrics {
    struct counts {
        uint64_t n_requests = 0;
        uint64_t n_tokens   = 0;
        uint64_t t_us       = 0;
    };

    std::map<std::string, counts> tiers;
    common_skip_work              work;

    void add(const common_skip_request & request, uint64_t n_tokens, uint64_t t_us, const common_skip_work & work);
    std::string prometheus() const; // empty while no request left anything out
};
