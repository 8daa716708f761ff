#include "tiers/request.h"

#include "llama-skip.h"

#include "context/mask.h"

#include "json.h"

#include <functional>
#include <sstream>
#include <stdexcept>

static constexpr size_t max_spec = 1 << 12; // characters of a set in a request

bool common_skip_same(const common_skip_mask & a, const common_skip_mask & b) {
    return a == b || (a && b && a->tag == b->tag);
}

void common_skip_use(llama_context * ctx, const common_skip_mask & mask) {
    llama_skip_use_mask(*ctx, mask.get());
}

bool common_skip_lacks(const common_skip_mask & prompt, const common_skip_mask & mask) {
    return mask && mask->lacks(prompt.get());
}

// "the tiers are: fast, faster"
static std::string known(const common_skip_tier_params & params) {
    return params.tiers.empty() ? "this server has no tiers" : "the tiers are: " + params.names();
}

void common_skip_request::read(const common_json & body, const common_skip_tier_params & params) {
    const auto given = [&](const char * key) {
        return body.contains(key) && !body.at(key).is_null();
    };
    if (given("model") && body.at("model").is_string()) {
        const std::string model = body.at("model").get<std::string>();
        const size_t      at    = model.rfind('@');
        if (at != std::string::npos && params.has(model.substr(at + 1))) {
            tier = model.substr(at + 1);
        }
    }
    if (given("skip_layers")) {
        if (!body.at("skip_layers").is_string()) {
            throw std::invalid_argument("skip_layers: expected a string, the name of a tier or a set of blocks");
        }
        tier.clear();
        layers = body.at("skip_layers").get<std::string>();
        if (params.has(layers)) {
            tier.swap(layers);
        } else if (layers.empty() || layers.size() > max_spec) {
            throw std::invalid_argument("skip_layers: expected 1 to 4096 characters");
        } else if (layers[0] == '@' && layers.find_first_of("./\\") != std::string::npos) {
            throw std::invalid_argument("skip_layers: a request cannot name a file");
        } else if (!llama_skip_check("", layers.c_str(), "", "skip_layers", "")) {
            throw std::invalid_argument(std::string(llama_skip_error()) + " (" + known(params) + ")");
        }
    }
    if (given("skip_max_kld")) {
        max_kld = body.at("skip_max_kld").is_number() ? body.at("skip_max_kld").get<double>() : -1;
        if (!(max_kld >= 0)) {
            throw std::invalid_argument("skip_max_kld: expected a number of nats that is not negative");
        }
        if (params.tiers.empty()) {
            throw std::invalid_argument("skip_max_kld: " + known(params));
        }
    }
    if (given("skip_prompt")) {
        if (!body.at("skip_prompt").is_boolean()) {
            throw std::invalid_argument("skip_prompt: expected true or false");
        }
        prompt = body.at("skip_prompt").get<bool>();
    }
    if (prompt && max_kld >= 0) {
        throw std::invalid_argument("skip_max_kld: the prompt is the measure, it cannot be masked with skip_prompt");
    }
}

const common_skip_mask & common_skip_request::prompt_mask() const {
    static const common_skip_mask none;
    return prompt ? mask : none;
}

std::string common_skip_request::shown() const {
    return !tier.empty() ? tier : mask ? mask->layers : "";
}

common_json common_skip_request::to_json() const {
    return { { "tier", tier }, { "layers", mask ? mask->layers : "" }, { "prompt", prompt } };
}

void common_skip_timings::write(common_json & timings) const {
    if (!depth.empty() || kld >= 0) {
        timings["skip"] = depth;
    }
    if (kld >= 0) {
        timings["skip_kld"]      = kld;
        timings["skip_probe_ms"] = probe_ms;
    }
}

void common_skip_metrics::add(
    const common_skip_request & request, uint64_t n_tokens, uint64_t t_us, const common_skip_work & work) {
    counts & tier = tiers[!request.tier.empty() ? request.tier : request.mask ? "other" : "none"];
    tier.n_requests += 1;
    tier.n_tokens += n_tokens;
    tier.t_us += t_us;
    this->work = work;
}

std::string common_skip_metrics::prometheus() const {
    std::ostringstream out;
    const auto         head = [&](const char * name, const char * text) {
        out << "# HELP llamacpp:skip_" << name << " " << text << "\n# TYPE llamacpp:skip_" << name << " counter\n";
    };
    const auto one = [&](const char * name, const char * text, double value) {
        head(name, text);
        out << "llamacpp:skip_" << name << " " << value << "\n";
    };
    const auto each = [&](const char * name, const char * text, const std::function<double(const counts &)> & value) {
        head(name, text);
        for (const auto & [tier, n] : tiers) {
            out << "llamacpp:skip_" << name << "{tier=\"" << tier << "\"} " << value(n) << "\n";
        }
    };
    if (tiers.empty() || (tiers.size() == 1 && tiers.count("none") == 1 && work.n_probes == 0)) {
        return "";
    }
    each("requests_total", "Requests answered, by tier", [](const counts & n) { return n.n_requests; });
    each("tokens_predicted_total", "Tokens generated, by tier", [](const counts & n) { return n.n_tokens; });
    each("tokens_predicted_seconds_total", "Time spent generating, by tier",
        [](const counts & n) { return n.t_us / 1e6; });
    one("switches_total", "Batches with another mask than the one before", work.n_switches);
    one("probes_total", "Prompts that were measured", work.n_probes);
    one("probe_seconds_total", "Time spent measuring prompts", work.probe_ms / 1e3);
    return out.str();
}
