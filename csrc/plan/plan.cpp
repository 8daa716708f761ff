#include "plan/plan.h"

#include "plan/file.h"
#include "plan/identity.h"
#include "plan/named.h"
#include "plan/path.h"

#include "llama-hparams.h"
#include "llama-model-loader.h"

#include "ggml-cpp.h"

#include <algorithm>
#include <filesystem>
#include <stdexcept>

static const char * const expected = "expected auto:P%, auto:K, @NAME or @PATH with a dot or a slash";

static const char * const digits     = "0123456789";
static const char * const name_chars = "0123456789_-abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

namespace {

// one of them is set
struct plan_request {
    int64_t     millionths = 0; // of a percent of the blocks
    int64_t     n_blocks   = 0;
    std::string name;
    std::string path;
};

} // namespace

// "12.5" with at most `n_decimals` decimals, as an integer of the smallest unit; -1: not a number, or too large
static int64_t parse_decimal(const std::string & number, size_t n_decimals) {
    const size_t point    = std::min(number.find('.'), number.size());
    std::string  decimals = number.substr(std::min(point + 1, number.size()));
    const bool   is_whole = point == number.size();
    if (point == 0 || point > 9 || decimals.size() > n_decimals || is_whole != decimals.empty() ||
        (number.substr(0, point) + decimals).find_first_not_of(digits) != std::string::npos) {
        return -1;
    }
    decimals.resize(n_decimals, '0');
    return std::stoll(number.substr(0, point) + decimals);
}

static plan_request parse_auto(const std::string & text) {
    plan_request request;
    std::string  number = text.substr(5);
    if (!number.empty() && number.back() == '%') {
        number.pop_back();
        request.millionths = parse_decimal(number, 6);
        if (request.millionths < 0) {
            throw std::runtime_error(expected);
        }
        if (request.millionths == 0 || request.millionths >= 100 * 1000000) {
            throw std::runtime_error("a share of the blocks has to be above 0% and below 100%");
        }
        return request;
    }
    request.n_blocks = parse_decimal(number, 0);
    if (request.n_blocks < 0) {
        throw std::runtime_error(expected);
    }
    if (request.n_blocks == 0) {
        throw std::runtime_error("at least one block has to go, give none to leave nothing out");
    }
    return request;
}

static plan_request parse(const std::string & text) {
    if (text[0] != '@') {
        return parse_auto(text);
    }
    plan_request      request;
    const std::string what = text.substr(1);
    if (what.find_first_of("./\\") != std::string::npos) {
        request.path = what;
        return request;
    }
    if (what.empty() || what.find_first_not_of(name_chars) != std::string::npos) {
        throw std::runtime_error(expected);
    }
    if (what.find_first_not_of(digits) == std::string::npos) {
        throw std::runtime_error("a name is not a number, did you mean auto:" + what + "?");
    }
    request.name = what;
    return request;
}

static std::invalid_argument refused(
    const std::string & name, const std::string & text, const std::exception & reason) {
    return std::invalid_argument(name + ": '" + text + "': " + reason.what());
}

void llama_skip_check_plan(const std::string & name, const std::string & text) {
    try {
        parse(text);
    } catch (const std::exception & err) {
        throw refused(name, text, err);
    }
}

// MODEL.skip.gguf beside MODEL.gguf; null where there is none
static gguf_context_ptr open_sidecar(const std::string & path_model, std::string & path) {
    static const std::string end = ".gguf";

    const bool has_end =
        path_model.size() > end.size() && path_model.compare(path_model.size() - end.size(), end.size(), end) == 0;
    path = path_model.substr(0, path_model.size() - (has_end ? end.size() : 0)) + ".skip.gguf";
    if (path_model.empty() || !std::filesystem::exists(std::filesystem::u8path(path))) {
        return nullptr;
    }
    gguf_context_ptr meta(gguf_init_from_file(path.c_str(), { /*no_alloc*/ true, /*ctx*/ nullptr }));
    if (!meta) {
        throw std::runtime_error(path + " is not a readable GGUF file");
    }
    return meta;
}

std::set<std::string> llama_skip_plan_names(const std::string & path_model) {
    const gguf_context_ptr model(gguf_init_from_file(path_model.c_str(), { /*no_alloc*/ true, /*ctx*/ nullptr }));
    std::string            path;
    llama_skip_sources     sources;
    try {
        const gguf_context_ptr sidecar = open_sidecar(path_model, path);
        for (const auto * meta : { model.get(), sidecar.get() }) {
            if (meta) {
                sources.push_back({ meta, "" });
            }
        }
        return llama_skip_plan_names(sources);
    } catch (const std::exception &) {
        return {};
    }
}

static llama_skip_part part_of(const plan_request & request, int32_t n_layer) {
    const int64_t share = request.millionths * n_layer / (100 * 1000000);
    const int64_t n     = request.n_blocks > 0 ? request.n_blocks : std::max<int64_t>(share, 1);
    if (n >= n_layer) {
        throw std::runtime_error("the model has " + std::to_string(n_layer) + " blocks, at least one has to stay");
    }
    const double exact = request.n_blocks > 0 ? (double) n / n_layer : request.millionths / 1e8;
    return { (size_t) n, exact };
}

static llama_skip_plan find(const plan_request & request, const llama_skip_identity & model, llama_model_loader & ml,
    const llama_hparams & hparams) {
    if (!request.path.empty()) {
        return llama_skip_read_plan_file(request.path, model, hparams.n_embd);
    }
    const int32_t n_layer = hparams.n_layer() / hparams.skip.model.n_loop; // in the file

    std::string            path;
    const gguf_context_ptr sidecar = open_sidecar(ml.skip.path, path);

    llama_skip_sources sources = { { ml.metadata, "the model's metadata" } };
    if (sidecar) {
        sources.push_back({ sidecar.get(), path });
    }
    return request.name.empty() ? llama_skip_read_path(sources, model, part_of(request, n_layer), n_layer)
                                : llama_skip_read_named(sources, model, request.name);
}

llama_skip_plan llama_skip_find_plan(
    const std::string & name, const std::string & text, llama_model_loader & ml, const llama_hparams & hparams) {
    try {
        llama_skip_plan plan = find(parse(text), llama_skip_identify(ml), ml, hparams);
        if (plan.layers.empty()) {
            plan.layers = "none";
        }
        plan.origin = text + ", from " + plan.origin;
        return plan;
    } catch (const std::exception & err) {
        throw refused(name, text, err);
    }
}
