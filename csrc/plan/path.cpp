#include "plan/path.h"

#include "plan/metadata.h"
#include "set/spec.h"

#include <algorithm>
#include <iterator>
#include <stdexcept>

// the newest version of skip.score: 2 has halves
static const int64_t version_known = 2;

static const double exact = 1e-6; // a share is written as f32

namespace {

struct greedy_path {
    std::vector<int32_t>     blocks;
    std::vector<std::string> halves; // "", "attn", "ffn"; none: blocks alone
    std::vector<float>       shares; // of what the path goes by, gone with each step
    std::vector<float>       klds;
};

} // namespace

static greedy_path read_steps(const llama_skip_source & source, int64_t version) {
    greedy_path path;
    llama_skip_gguf_ints(source.meta, "skip.score.path", path.blocks);
    llama_skip_gguf_floats(source.meta, "skip.score.path.kld", path.klds);
    if (version == 1) {
        return path;
    }
    llama_skip_gguf_strs(source.meta, "skip.score.path.half", path.halves);
    llama_skip_gguf_floats(source.meta, "skip.score.path.share", path.shares);
    if (path.halves.size() != path.blocks.size() || path.shares.size() != path.blocks.size()) {
        throw std::runtime_error("skip.score of " + source.where + " has " + std::to_string(path.blocks.size()) +
                                 " steps, but " + std::to_string(path.halves.size()) + " halves and " +
                                 std::to_string(path.shares.size()) + " shares of them");
    }
    return path;
}

static std::string percent_str(double share) {
    return llama_skip_number_str((float) (share * 100.0)) + "%";
}

// how many steps of the path it takes
static size_t count_steps(const greedy_path & path, llama_skip_part part, int32_t n_layer, const std::string & where) {
    if (path.halves.empty()) {
        if (part.n_blocks > path.blocks.size()) {
            throw std::runtime_error("the greedy path in " + where + " has " + std::to_string(path.blocks.size()) +
                                     " blocks, " + std::to_string(part.n_blocks) +
                                     " are needed; score the model further");
        }
        return part.n_blocks;
    }
    const double least = (double) part.n_blocks / n_layer;
    if (!(path.shares.back() >= least - exact)) {
        throw std::runtime_error("the greedy path in " + where + " leaves out " + percent_str(path.shares.back()) +
                                 ", " + percent_str(least) + " are needed; score the model further");
    }
    const auto past = std::find_if(
        path.shares.begin(), path.shares.end(), [&](float share) { return !(share <= part.share + exact); });
    return std::max<size_t>(std::distance(path.shares.begin(), past), 1);
}

// the half that a word names, -1: the whole block
static int half_of(const std::string & word, const std::string & where) {
    if (word.empty()) {
        return -1;
    }
    const auto * end  = std::end(llama_skip_half_names);
    const auto * name = std::find(std::begin(llama_skip_half_names), end, word);
    if (name == end) {
        throw std::runtime_error(
            "skip.score.path.half of " + where + " names '" + word + "', expected attn, ffn or nothing");
    }
    return name - std::begin(llama_skip_half_names);
}

static std::string layers_of(const greedy_path & path, size_t n, int32_t n_layer, const std::string & where) {
    llama_skip skip;
    for (size_t i = 0; i < n; ++i) {
        const int32_t il     = path.blocks[i];
        const int     half   = path.halves.empty() ? -1 : half_of(path.halves[i], where);
        const bool    absent = il < 0 || il >= n_layer;
        if (absent || skip.out[il] || (half >= 0 && skip.half[half][il])) {
            throw std::runtime_error("skip.score.path of " + where + " names block " + std::to_string(il) +
                                     (absent ? ", which is not there" : " twice"));
        }
        (half < 0 ? skip.out : skip.half[half]).set(il);
    }
    for (auto & half : skip.half) {
        half &= ~skip.out; // a block takes the place of its half
    }
    return llama_skip_set_str(skip);
}

llama_skip_plan llama_skip_read_path(
    const llama_skip_sources & sources, const llama_skip_identity & model, llama_skip_part part, int32_t n_layer) {
    const auto has_path = [](const llama_skip_source & s) {
        return gguf_find_key(s.meta, "skip.score.path") >= 0;
    };
    const auto source = std::find_if(sources.begin(), sources.end(), has_path);
    if (source == sources.end()) {
        throw std::runtime_error("the model brings no greedy path (skip.score.path), neither in its metadata nor in "
                                 "a .skip.gguf beside it; llama-skip score and annotate make one");
    }
    const auto header = llama_skip_check_header(*source, "skip.score", version_known, model);
    const auto path   = read_steps(*source, header.version);
    const auto n      = count_steps(path, part, n_layer, source->where);

    llama_skip_plan plan;
    plan.other_weights = header.other_weights;
    plan.layers        = layers_of(path, n, n_layer, source->where);
    plan.origin = source->where + (path.klds.size() == path.blocks.size() ? llama_skip_cost_str(path.klds[n - 1]) : "");
    return plan;
}
