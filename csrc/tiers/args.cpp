#include "tiers/args.h"

#include "llama-skip.h"

#include "load/check.h"
#include "plan/plan.h"

#include "arg.h"
#include "common.h"
#include "log.h"

#include <algorithm>
#include <regex>
#include <stdexcept>

const int32_t common_skip_n_probe = 64; // benchmarks/probe.py

int32_t common_skip_tier_params::n_outputs() const {
    return tiers.empty() ? 1 : common_skip_n_probe;
}

bool common_skip_tier_params::has(const std::string & name) const {
    return std::any_of(tiers.begin(), tiers.end(), [&](const auto & tier) { return tier.first == name; });
}

std::string common_skip_tier_params::names() const {
    std::string res;
    for (const auto & [name, _] : tiers) {
        res += (res.empty() ? "" : ", ") + name;
    }
    return res;
}

// "NAME=SPEC", several of them in an environment variable
static void read_tiers(common_skip_tier_params & params, const std::string & value) {
    static const std::regex between("\\s+(?=[\\w.-]+=)");
    static const std::regex tier("([\\w.-]+)=(.+)");

    for (std::sregex_token_iterator it(value.begin(), value.end(), between, -1), end; it != end; ++it) {
        const std::string text = *it;
        std::smatch       m;
        if (!std::regex_match(text, m, tier)) {
            throw std::invalid_argument(string_format("--skip-tier: '%s': expected NAME=SPEC", text.c_str()));
        }
        params.tiers.emplace_back(m[1], m[2]);
    }
}

// "NAME:N[,NAME:N...]"
static void read_load(common_skip_tier_params & params, const std::string & value) {
    static const std::regex step("([\\w.-]+):([1-9][0-9]{0,5})");

    params.load.clear();
    for (const auto & text : string_split<std::string>(value, ',')) {
        std::smatch m;
        if (!std::regex_match(text, m, step)) {
            throw std::invalid_argument(
                string_format("--skip-load: '%s': expected NAME:N, N the number of other requests", text.c_str()));
        }
        params.load.emplace_back(m[1], std::stoi(m[2]));
    }
}

void common_skip_tier_add_args(const std::function<void(common_arg)> & add_opt) {
    add_opt(common_arg({ "--skip-tier" }, "NAME=SPEC",
        "a depth that a request can ask for by name (\"skip_layers\": NAME, or \"model\": MODEL@NAME), SPEC as for "
        "--skip-layers; may be given more than once",
        [](common_params & params, const std::string & value) { read_tiers(params.skip_tiers, value); })
                .set_examples({ LLAMA_EXAMPLE_SERVER })
                .set_env("LLAMA_ARG_SKIP_TIER"));
    add_opt(common_arg({ "--skip-load" }, "NAME:N,...",
        "the tier of a request that names none while there are at least N others, running or waiting (default: none)",
        [](common_params & params, const std::string & value) { read_load(params.skip_tiers, value); })
                .set_examples({ LLAMA_EXAMPLE_SERVER })
                .set_env("LLAMA_ARG_SKIP_LOAD"));
    add_opt(common_arg({ "--skip-masks-max" }, "N",
        "how many sets that are no tier are kept made; the least recently used goes (default: 8)",
        [](common_params & params, int value) {
            if (value < 1) {
                throw std::invalid_argument("--skip-masks-max: expected at least 1");
            }
            params.skip_tiers.n_masks = value;
        })
                .set_examples({ LLAMA_EXAMPLE_SERVER })
                .set_env("LLAMA_ARG_SKIP_MASKS_MAX"));
}

void common_skip_tier_check(common_skip_tier_params & params) {
    static const std::regex name_chars("[\\w.-]{1,64}");

    for (auto it = params.tiers.begin(); it != params.tiers.end(); ++it) {
        const auto & [name, layers] = *it;
        const std::string flag      = "--skip-tier " + name;
        if (!std::regex_match(name, name_chars)) {
            throw std::invalid_argument(string_format("error: %s: a name has at most 64 characters", flag.c_str()));
        }
        if (llama_skip_check("", name.c_str(), "", "", "")) {
            throw std::invalid_argument(string_format("error: %s: the name is a set of blocks", flag.c_str()));
        }
        if (std::any_of(params.tiers.begin(), it, [&](const auto & other) { return other.first == name; })) {
            throw std::invalid_argument(string_format("error: %s: the name is given twice", flag.c_str()));
        }
        if (!llama_skip_check("", layers.c_str(), "", flag.c_str(), "")) {
            throw std::invalid_argument(string_format("error: %s", llama_skip_error()));
        }
    }
    int32_t before = 0;
    for (const auto & [name, n] : params.load) {
        if (n <= before) {
            throw std::invalid_argument(
                string_format("error: --skip-load: %s:%d: the numbers have to rise", name.c_str(), n));
        }
        before = n;
    }
    params.n_given = params.tiers.size();
}

bool common_skip_load_ok(const common_skip_tier_params & params) {
    for (const auto & [name, _] : params.load) {
        if (!params.has(name)) {
            LOG_ERR("error: --skip-load: no tier '%s', there are: %s\n", name.c_str(),
                params.tiers.empty() ? "none" : params.names().c_str());
            return false;
        }
    }
    return true;
}

bool common_skip_find_tiers(common_params & params) {
    common_skip_tier_params & known = params.skip_tiers;
    if (known.is_complete) {
        return true; // llama-server slept
    }
    known.is_complete = true;
    for (const auto & name : llama_skip_plan_names(params.model.path)) {
        if (llama_skip_check("", name.c_str(), "", "", "")) {
            LOG_WRN("skip: the plan %s is no tier: its name is a set of blocks\n", name.c_str());
        } else if (!known.has(name)) {
            known.tiers.emplace_back(name, "@" + name);
        }
    }
    if (!common_skip_load_ok(known)) {
        return false;
    }
    for (const auto & [_, layers] : known.tiers) {
        const size_t n_bytes = llama_skip_plan_bytes(params.model.path, layers);
        for (auto & target : params.fit_params_target) {
            target += n_bytes;
        }
    }
    return true;
}
