#include "plan/read.h"

#include "bypass/buffers.h"
#include "bypass/file.h"
#include "plan/metadata.h"
#include "set/spec.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>
#include <stdexcept>

static const int64_t version_known = 1;

//
// a version and two identities
//

static void check_version(int64_t version, const std::string & what) {
    if (version != version_known) {
        throw std::runtime_error(
            what + " has version " + std::to_string(version) + ", this build knows " + std::to_string(version_known));
    }
}

// whether it was made with other weights
static bool check_model(const llama_skip_identity & model, const std::string & model_id, const std::string & file_id,
    const std::string & what) {
    if (model_id != model.model_id) {
        throw std::runtime_error(
            what + " is about another model (" + model_id + ", this one is " + model.model_id + ")");
    }
    return file_id != model.file_id;
}

static std::string need_str(const llama_skip_source & source, const std::string & key) {
    std::string value;
    if (!llama_skip_gguf_str(source.meta, key, value)) {
        throw std::runtime_error(source.where + " has no " + key);
    }
    return value;
}

// of skip.score or skip.plan.NAME
static bool check_header(
    const llama_skip_source & source, const std::string & prefix, const llama_skip_identity & model) {
    int64_t version = 0;
    if (!llama_skip_gguf_int(source.meta, prefix + ".version", version)) {
        throw std::runtime_error(source.where + " has no " + prefix + ".version");
    }
    check_version(version, prefix + " of " + source.where);
    return check_model(model, need_str(source, prefix + ".model_id"), need_str(source, prefix + ".file_id"),
        prefix + " of " + source.where);
}

static std::string cost_str(float kld) {
    return std::isfinite(kld) ? ", KL divergence " + llama_skip_number_str(kld) : "";
}

//
// auto:P%, auto:K
//

static std::string layers_of(const std::vector<int32_t> & path, size_t n, int32_t n_layer, const std::string & where) {
    llama_skip_mask mask;
    for (size_t i = 0; i < n; ++i) {
        if (path[i] < 0 || path[i] >= n_layer || mask[path[i]]) {
            throw std::runtime_error("skip.score.path of " + where + " names block " + std::to_string(path[i]) +
                                     (path[i] < 0 || path[i] >= n_layer ? ", which is not there" : " twice"));
        }
        mask.set(path[i]);
    }
    return llama_skip_layers_str(mask);
}

llama_skip_plan llama_skip_read_path(
    const llama_skip_sources & sources, const llama_skip_identity & model, size_t n_blocks, int32_t n_layer) {
    const auto has_path = [](const llama_skip_source & s) {
        return gguf_find_key(s.meta, "skip.score.path") >= 0;
    };
    const auto source = std::find_if(sources.begin(), sources.end(), has_path);
    if (source == sources.end()) {
        throw std::runtime_error("the model brings no greedy path (skip.score.path), neither in its metadata nor in "
                                 "a .skip.gguf beside it; llama-skip score and annotate make one");
    }
    llama_skip_plan plan;
    plan.other_weights = check_header(*source, "skip.score", model);

    std::vector<int32_t> path;
    std::vector<float>   klds;
    llama_skip_gguf_ints(source->meta, "skip.score.path", path);
    llama_skip_gguf_floats(source->meta, "skip.score.path.kld", klds);

    if (n_blocks > path.size()) {
        throw std::runtime_error("the greedy path in " + source->where + " has " + std::to_string(path.size()) +
                                 " blocks, " + std::to_string(n_blocks) + " are needed; score the model further");
    }
    plan.layers = layers_of(path, n_blocks, n_layer, source->where);
    plan.origin = source->where + (klds.size() == path.size() ? cost_str(klds[n_blocks - 1]) : "");
    return plan;
}

//
// @NAME
//

// "a, b", or "none"
static std::string known_names(const llama_skip_sources & sources) {
    static const std::string prefix = "skip.plan.";
    static const std::string suffix = ".version";

    std::set<std::string> names;
    for (const auto & source : sources) {
        for (int64_t i = 0; i < gguf_get_n_kv(source.meta); ++i) {
            const std::string key = gguf_get_key(source.meta, i);
            if (key.compare(0, prefix.size(), prefix) == 0 && key.size() > prefix.size() + suffix.size() &&
                key.compare(key.size() - suffix.size(), suffix.size(), suffix) == 0) {
                names.insert(key.substr(prefix.size(), key.size() - prefix.size() - suffix.size()));
            }
        }
    }
    std::string text;
    for (const auto & name : names) {
        text += (text.empty() ? "" : ", ") + name;
    }
    return text.empty() ? "none" : text;
}

llama_skip_plan llama_skip_read_plan(
    const llama_skip_sources & sources, const llama_skip_identity & model, const std::string & name) {
    const std::string prefix = "skip.plan." + name;
    const auto        source = std::find_if(sources.begin(), sources.end(),
               [&](const llama_skip_source & s) { return gguf_find_key(s.meta, (prefix + ".version").c_str()) >= 0; });
    if (source == sources.end()) {
        throw std::runtime_error("the model brings no plan of that name, neither in its metadata nor in a .skip.gguf "
                                 "beside it; known: " +
                                 known_names(sources));
    }
    llama_skip_plan plan;
    plan.other_weights = check_header(*source, prefix, model);
    plan.layers        = need_str(*source, prefix + ".layers");
    llama_skip_gguf_str(source->meta, prefix + ".scale", plan.scale);
    llama_skip_gguf_str(source->meta, prefix + ".disk_layers", plan.disk_layers);
    llama_skip_gguf_str(source->meta, prefix + ".disk_scale", plan.disk_scale);

    float kld = NAN;
    llama_skip_gguf_float(source->meta, prefix + ".kld", kld);
    plan.origin = source->where + cost_str(kld);
    return plan;
}

//
// @PATH
//

// the JSON of a plan file, which a GGUF has as this value
static const char * const key_plan_file = "skip.plan_file";

static nlohmann::json parse_content(const std::string & text) {
    const auto content = nlohmann::json::parse(text, nullptr, /*allow_exceptions*/ false);
    if (!content.is_object() || content.value("format", nlohmann::json()) != "llama-skip-plan") {
        throw std::runtime_error("not a plan file: expected JSON of the format llama-skip-plan");
    }
    return content;
}

static llama_skip_plan plan_of(const nlohmann::json & content, const llama_skip_identity & model) {
    llama_skip_plan plan;

    check_version(content.at("version").get<int64_t>(), "the plan file");
    plan.other_weights =
        check_model(model, content.at("model").at("model_id"), content.at("model").at("file_id"), "the plan file");
    plan.layers = content.at("skip_layers");
    plan.scale  = content.value("skip_scale", "");

    plan.disk_layers = content.value("disk_layers", "");
    plan.disk_scale  = content.value("disk_scale", "");

    const auto found = content.value("found", nlohmann::json());
    const bool costs = found.is_object() && found.contains("kld") && found["kld"].is_number();

    plan.origin = "a plan file" + (costs ? cost_str(found["kld"]) : "");
    return plan;
}

static int32_t read_count(const nlohmann::json & entry, const char * key) {
    const auto & value = entry.at(key);
    if (!value.is_number_integer() || value < 0 || value > INT32_MAX) {
        throw std::runtime_error(std::string(key) + " of a bypass is " + value.dump() + ", expected a whole number");
    }
    return value;
}

// the entry of one gap; its tensors come later
static llama_skip_bypass_tensors read_gap(const nlohmann::json & entry) {
    llama_skip_bypass_tensors gap;
    gap.first    = read_count(entry, "gap");
    gap.n_blocks = read_count(entry, "n_blocks");
    if (!entry.at("norm_eps").is_null()) {
        entry["norm_eps"].get_to(gap.norm_eps);
        if (!std::isfinite(gap.norm_eps) || gap.norm_eps < 0.0f) {
            throw std::runtime_error(
                "the norm_eps of the gap at block " + std::to_string(gap.first) + " is not a number of at least 0");
        }
    }
    return gap;
}

// what an entry says of its tensors has to be true
static void check_entry(const nlohmann::json & entry, const llama_skip_bypass_tensors & gap) {
    const std::string where = " of the gap at block " + std::to_string(gap.first);
    const std::string tier  = entry.at("tier");
    if (tier != (gap.u ? "linear" : "affine")) {
        throw std::runtime_error(
            "the tier" + where + " is '" + tier + "', its tensors are those of " + (gap.u ? "'linear'" : "'affine'"));
    }
    const int32_t rank = gap.u ? read_count(entry, "rank") : 0;
    if (rank != gap.rank()) {
        throw std::runtime_error(
            "the rank" + where + " is " + std::to_string(rank) + ", its tensors have " + std::to_string(gap.rank()));
    }
}

static std::vector<llama_skip_bypass_tensors> read_gaps(const nlohmann::json & entries) {
    std::vector<llama_skip_bypass_tensors> gaps;
    for (const auto & entry : entries) {
        gaps.push_back(read_gap(entry));
        for (size_t i = 0; i + 1 < gaps.size(); ++i) {
            if (gaps[i].first == gaps.back().first) {
                throw std::runtime_error("two bypasses of the gap at block " + std::to_string(gaps[i].first));
            }
        }
    }
    return gaps;
}

static bool is_gguf(std::ifstream & in) {
    char magic[4] = {};
    in.read(magic, sizeof(magic));
    in.clear();
    in.seekg(0);
    return std::string(magic, sizeof(magic)) == GGUF_MAGIC;
}

static llama_skip_plan read_gguf(const std::string & path, const llama_skip_identity & model, int64_t n_embd) {
    auto                    file   = std::make_unique<llama_skip_bypass_file>(path);
    const llama_skip_source source = { file->metadata(), "the plan file" };
    const std::string       arch   = need_str(source, "general.architecture");
    if (arch != model.architecture) {
        throw std::runtime_error(
            "the plan file is for architecture '" + arch + "', the model has '" + model.architecture + "'");
    }
    const nlohmann::json content = parse_content(need_str(source, key_plan_file));
    const nlohmann::json entries = content.value("bypass", nlohmann::json::array());

    llama_skip_plan plan = plan_of(content, model);
    auto            gaps = read_gaps(entries);
    file->describe(gaps, n_embd);
    for (size_t i = 0; i < entries.size(); ++i) {
        check_entry(entries[i], gaps[i]);
    }
    if (!gaps.empty()) {
        plan.bypasses = std::make_shared<llama_skip_bypasses>(std::move(file), std::move(gaps));
    }
    return plan;
}

static llama_skip_plan read_json(std::ifstream & in, const llama_skip_identity & model) {
    const nlohmann::json content =
        parse_content(std::string(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()));
    if (!content.value("bypass", nlohmann::json::array()).empty()) {
        throw std::runtime_error("the tensors of its bypass are missing: a plan file with a bypass is a GGUF");
    }
    return plan_of(content, model);
}

llama_skip_plan llama_skip_read_plan_file(const std::string & path, const llama_skip_identity & model, int64_t n_embd) {
    std::ifstream in(std::filesystem::u8path(path), std::ios::binary);
    if (!in) {
        throw std::runtime_error("the file cannot be read");
    }
    try {
        return is_gguf(in) ? read_gguf(path, model, n_embd) : read_json(in, model);
    } catch (const nlohmann::json::exception & err) {
        throw std::runtime_error(std::string("not a whole plan file: ") + err.what());
    }
}
