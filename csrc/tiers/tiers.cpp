#include "tiers/tiers.h"

#include "context/mask.h"
#include "context/state.h"
#include "tiers/probe.h"

#include "log.h"

#include <algorithm>
#include <exception>
#include <tuple>

static const int32_t n_turn = 4; // batches of a turn

bool common_skip_tiers::load(llama_context * ctx, common_skip_tier_params & params) {
    clear();
    this->ctx = ctx;
    for (auto it = params.tiers.begin(); it != params.tiers.end();) {
        const auto & [name, layers] = *it;
        try {
            tiers.push_back({ name, llama_skip_make_mask(*ctx, layers) });
            LOG_INF("skip: tier %s: blocks %s left out\n", name.c_str(), tiers.back().mask->layers.c_str());
            ++it;
        } catch (const std::exception & err) {
            if (it < params.tiers.begin() + params.n_given) {
                LOG_ERR("error: --skip-tier %s: %s\n", name.c_str(), err.what());
                return false;
            }
            LOG_WRN("skip: the plan %s is no tier: %s\n", name.c_str(), err.what());
            it = params.tiers.erase(it);
        }
    }
    this->params = params;
    return common_skip_load_ok(params);
}

void common_skip_tiers::clear() {
    tiers.clear();
    others.clear();
    order.clear();
    current.reset();
    level = 0;
}

std::vector<std::pair<std::string, std::string>> common_skip_tiers::depths() const {
    std::vector<std::pair<std::string, std::string>> res;
    for (const auto & [name, mask] : tiers) {
        res.emplace_back(name, mask->layers);
    }
    return res;
}

common_skip_mask common_skip_tiers::other(const std::string & layers) {
    auto it = std::find_if(others.begin(), others.end(), [&](const made & m) { return m.layers == layers; });
    if (it == others.end()) {
        common_skip_mask mask = llama_skip_make_mask(*ctx, layers);
        if (others.size() >= (size_t) params.n_masks) {
            others.erase(others.begin());
        }
        others.push_back({ layers, std::move(mask) });
    } else {
        std::rotate(it, it + 1, others.end());
    }
    return others.back().mask;
}

// up at once, down where there are a quarter fewer, at least one
void common_skip_tiers::set_level(size_t n_others) {
    const auto n = [&](size_t i) {
        return (size_t) params.load[i].second;
    };
    while (level < params.load.size() && n_others >= n(level)) {
        ++level;
    }
    while (level > 0 && n_others + std::max<size_t>(1, n(level - 1) / 4) <= n(level - 1)) {
        --level;
    }
}

bool common_skip_tiers::resolve(common_skip_request & request, size_t n_others) {
    set_level(n_others);
    if (!request.candidates.empty()) {
        return true; // it has waited
    }
    const bool is_limited = request.max_kld >= 0;
    request.by_load |= request.tier.empty() && request.layers.empty() && !is_limited;
    if (request.by_load) { // again for one that has waited
        request.tier = level > 0 ? params.load[level - 1].first : "";
        request.mask.reset();
    }
    for (const auto & [name, mask] : tiers) {
        if (name == request.tier) {
            request.mask = mask;
        }
        if (is_limited && request.layers.empty() && (request.tier.empty() || name == request.tier)) {
            request.candidates.emplace_back(name, mask);
        }
    }
    try {
        if (!request.layers.empty() && request.layers != "none") {
            request.mask = other(request.layers);
        }
    } catch (const std::exception & err) {
        error = std::string("skip_layers: ") + err.what();
        return false;
    }
    if (request.mask && request.mask->skip == *request.mask->loaded) {
        request.mask.reset();
    }
    if (is_limited && !request.layers.empty() && request.mask) {
        request.candidates.emplace_back("", request.mask);
    }
    const auto depth = [](const auto & candidate) {
        return candidate.second->n_left_out();
    };
    std::stable_sort(request.candidates.begin(), request.candidates.end(),
        [&](const auto & a, const auto & b) { return depth(a) > depth(b); });
    if (is_limited) { // the server's own depth until one of them was measured
        request.tier.clear();
        request.mask.reset();
    }
    return true;
}

int32_t common_skip_tiers::n_probe(const common_skip_request & request) const {
    return request.candidates.empty() ? 0 : std::min<int32_t>(common_skip_n_probe, llama_n_ubatch(ctx));
}

bool common_skip_tiers::measure(common_skip_request & request, common_skip_timings & timings, common_speculative * spec,
    llama_seq_id seq_id, llama_pos pos, const std::vector<llama_token> & tokens) {
    const int64_t                 t_start = ggml_time_us();
    std::vector<common_skip_mask> masks;
    for (const auto & [_, mask] : request.candidates) {
        masks.push_back(mask);
    }
    const std::vector<double> klds = common_skip_probe(ctx, spec, seq_id, pos, tokens, masks);
    common_skip_use(ctx, current);

    timings = {};
    for (size_t i = 0; i < klds.size() && !request.mask; ++i) {
        timings.kld = klds[i];
        if (klds[i] <= request.max_kld) {
            std::tie(request.tier, request.mask) = request.candidates[i];
        }
    }
    request.candidates.clear();
    timings.depth    = request.shown();
    timings.probe_ms = (ggml_time_us() - t_start) / 1000.0;
    work.n_probes += !klds.empty();
    work.probe_ms += timings.probe_ms;
    return !klds.empty();
}

void common_skip_tiers::next(const std::vector<common_skip_mask> & masks, bool is_over) {
    const auto find = [](const std::vector<common_skip_mask> & in, const common_skip_mask & mask) {
        return std::find_if(in.begin(), in.end(), [&](const auto & other) { return common_skip_same(mask, other); });
    };
    order.erase(
        std::remove_if(order.begin(), order.end(), [&](const auto & mask) { return find(masks, mask) == masks.end(); }),
        order.end());
    for (const auto & mask : masks) {
        if (find(order, mask) == order.end()) {
            order.push_back(mask);
        }
    }
    if (order.empty()) {
        return;
    }
    if (has_turn(order.front()) && (is_over || n_batches >= n_turn)) {
        std::rotate(order.begin(), order.begin() + 1, order.end());
        n_batches = 0;
    }
    if (!has_turn(order.front())) {
        current   = order.front();
        n_batches = 0;
        ++work.n_switches;
    }
    ++n_batches;
    common_skip_use(ctx, current);
}

common_skip_mask common_skip_tiers::saved(const std::string & path) {
    const std::string tag = llama_skip_file_tag(path);
    common_skip_mask  res;
    for (const auto * made : { &tiers, &others }) {
        for (const auto & [_, mask] : *made) {
            if (mask->tag == tag) {
                res = mask;
            }
        }
    }
    common_skip_use(ctx, res); // another tag is refused when the file is read
    return res;
}
