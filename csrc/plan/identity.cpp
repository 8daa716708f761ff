#include "plan/identity.h"

#include "plan/header.h"
#include "plan/metadata.h"
#include "set/blocks.h"
#include "set/hash.h"

#include "llama-impl.h"
#include "llama-model-loader.h"

#include <algorithm>
#include <memory>
#include <stdexcept>

// reading either identity touches under 1 MiB of weights
static const size_t n_bytes_small  = 512 * 1024; // of small tensors, read whole
static const size_t n_sampled      = 32;         // larger ones, read at their start
static const size_t n_bytes_sample = 4096;

namespace {

using weight = llama_model_loader::llama_tensor_weight;

// by name, in the order of its bytes
using sorted_weights = std::map<std::string, const weight *>;

} // namespace

static bool ends_with(const std::string & name, const std::string & end) {
    return name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
}

// only some quantizations have them
static bool is_companion(const std::string & name) {
    return ends_with(name, ".scale") || ends_with(name, ".input_scale");
}

static std::string shape_str(const ggml_tensor * t) {
    std::string text = std::to_string(t->ne[0]);
    for (int i = 1; i < ggml_n_dims(t); ++i) {
        text += "x" + std::to_string(t->ne[i]);
    }
    return text;
}

static std::string hash_model(const llama_skip_identity & id, int64_t n_block, const sorted_weights & weights,
    const std::string & vocab, const std::vector<std::string> & tokens) {
    llama_skip_hash hash;
    hash.add("llama-skip-model-1");
    hash.add(id.architecture);
    hash.add(std::to_string(n_block));
    hash.add(std::to_string(id.n_embd));
    for (const auto & [name, w] : weights) {
        if (!is_companion(name)) {
            hash.add(name);
            hash.add(shape_str(w->tensor));
        }
    }
    hash.add(vocab);
    for (const auto & token : tokens) {
        hash.add(token);
    }
    return hash.hex();
}

static std::string read_start(const llama_model_loader & ml, const weight & w, size_t n_bytes) {
    std::string data(n_bytes, '\0');
    ml.files.at(w.idx)->seek(w.offs, SEEK_SET);
    ml.files.at(w.idx)->read_raw(data.data(), data.size());
    return data;
}

static std::string hash_file(
    const llama_model_loader & ml, const std::string & model_id, const sorted_weights & weights) {
    llama_skip_hash hash;
    hash.add("llama-skip-file-1");
    hash.add(model_id);

    std::vector<const weight *> by_size;
    for (const auto & [name, w] : weights) {
        hash.add(name);
        hash.add(std::to_string((int) w->tensor->type));
        by_size.push_back(w);
    }
    std::stable_sort(by_size.begin(), by_size.end(),
        [](const weight * a, const weight * b) { return ggml_nbytes(a->tensor) < ggml_nbytes(b->tensor); });

    size_t n_small = 0;
    for (size_t total = 0; n_small < by_size.size(); ++n_small) {
        const size_t n_bytes = ggml_nbytes(by_size[n_small]->tensor);
        total += n_bytes;
        if (total > n_bytes_small) {
            break;
        }
        hash.add(read_start(ml, *by_size[n_small], n_bytes));
    }
    const size_t n_large  = by_size.size() - n_small;
    const size_t n_sample = std::min(n_large, n_sampled);
    for (size_t i = 0; i < n_sample; ++i) {
        const weight & w = *by_size[n_small + i * n_large / n_sample];
        hash.add(read_start(ml, w, std::min(ggml_nbytes(w.tensor), n_bytes_sample)));
    }
    return hash.hex();
}

llama_skip_identity llama_skip_identify(llama_model_loader & ml) {
    const gguf_context * meta = ml.metadata;
    llama_skip_identity  id;
    if (!llama_skip_gguf_str(meta, "general.architecture", id.architecture)) {
        throw std::runtime_error("not a model: it has no general.architecture");
    }
    int64_t n_block = 0;
    int64_t n_embd  = 0;
    int64_t n_nextn = 0;
    int64_t n_vocab = 0;
    if (!llama_skip_gguf_int(meta, id.architecture + ".block_count", n_block)) {
        throw std::runtime_error("not a model with blocks: it has no " + id.architecture + ".block_count");
    }
    llama_skip_gguf_int(meta, id.architecture + ".embedding_length", n_embd);
    llama_skip_gguf_int(meta, id.architecture + ".nextn_predict_layers", n_nextn);
    llama_skip_gguf_int(meta, id.architecture + ".vocab_size", n_vocab);

    std::string              vocab;
    std::vector<std::string> tokens;
    llama_skip_gguf_str(meta, "tokenizer.ggml.model", vocab);
    if (llama_skip_gguf_strs(meta, "tokenizer.ggml.tokens", tokens)) {
        n_vocab = tokens.size();
    }
    llama_skip_gguf_str(meta, "general.name", id.name);

    id.file_type = ml.ftype_name();
    id.n_layer   = n_block - n_nextn;
    id.n_embd    = n_embd;
    id.n_vocab   = n_vocab;
    id.n_bytes   = ml.n_bytes;

    sorted_weights weights;
    for (const auto & [name, w] : ml.weights_map) {
        weights.emplace(name, &w);
    }
    id.model_id = hash_model(id, n_block, weights, vocab, tokens);
    if (!ml.files.empty()) {
        id.file_id = hash_file(ml, id.model_id, weights);
    }
    return id;
}

// What `read` makes of a file's header.
template <typename Read>
static auto with_header(const std::string & path, Read && read) {
    llama_skip_quiet_log quiet;
    try {
        return read(*llama_skip_open_header(path, quiet));
    } catch (const std::exception & err) {
        const std::string reason = quiet.error().substr(0, quiet.error().find_last_not_of("\n") + 1);
        throw std::runtime_error(path + ": " + err.what() + (reason.empty() ? "" : ": " + reason));
    }
}

llama_skip_identity llama_skip_identify(const std::string & path, std::vector<llama_skip_file_tensor> & tensors) {
    return with_header(path, [&](llama_model_loader & ml) {
        for (const auto & [name, w] : ml.weights_map) {
            const int half = llama_skip_half_of(name, ggml_n_dims(w.tensor));
            tensors.push_back({ name, ggml_type_name(w.tensor->type), ggml_nbytes(w.tensor), llama_skip_block_of(name),
                half < 0 ? "" : llama_skip_half_names[half] });
        }
        return llama_skip_identify(ml);
    });
}

std::string llama_skip_hash_weights(const std::string & path) {
    return with_header(path, [](llama_model_loader & ml) {
        llama_skip_hash hash;
        for (const auto & [name, w] : std::map(ml.weights_map.begin(), ml.weights_map.end())) {
            hash.add(name);
            hash.add(shape_str(w.tensor));
            hash.add(std::to_string((int) w.tensor->type));
            hash.add(read_start(ml, w, std::min(ggml_nbytes(w.tensor), n_bytes_sample)));
        }
        return hash.hex();
    });
}
