#include "plan/file.h"

#include "bypass/buffers.h"
#include "bypass/file.h"
#include "plan/source.h"

#include <nlohmann/json.hpp>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <stdexcept>

static const int64_t version_known = 1;

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

    llama_skip_check_version(content.at("version").get<int64_t>(), version_known, "the plan file");
    plan.other_weights = llama_skip_check_model(
        model, content.at("model").at("model_id"), content.at("model").at("file_id"), "the plan file");
    plan.layers = content.at("skip_layers");
    plan.scale  = content.value("skip_scale", "");

    plan.disk_layers = content.value("disk_layers", "");
    plan.disk_scale  = content.value("disk_scale", "");

    const auto found = content.value("found", nlohmann::json());
    const bool costs = found.is_object() && found.contains("kld") && found["kld"].is_number();

    plan.origin = "a plan file" + (costs ? llama_skip_cost_str(found["kld"]) : "");
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
    const std::string       arch   = llama_skip_need_str(source, "general.architecture");
    if (arch != model.architecture) {
        throw std::runtime_error(
            "the plan file is for architecture '" + arch + "', the model has '" + model.architecture + "'");
    }
    const nlohmann::json content = parse_content(llama_skip_need_str(source, key_plan_file));
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
