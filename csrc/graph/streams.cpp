#include "graph/streams.h"

#include "set/arch.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

// the `name` and the block of "name-block"
static bool split_name(const ggml_tensor * t, std::string & name, int32_t & il) {
    const char * dash = strrchr(t->name, '-');
    if (dash == nullptr || dash[1] < '0' || dash[1] > '9') {
        return false;
    }
    name.assign((const char *) t->name, dash - t->name);
    il = std::atoi(dash + 1);
    return true;
}

// of a last block, only some rows go on
static const ggml_tensor * all_rows(const ggml_tensor * t) {
    return t->op == GGML_OP_GET_ROWS ? t->src[0] : t;
}

// a norm behind a half that is left out reads its zeros
static bool is_norm(const ggml_tensor * t, int32_t block) {
    std::string name;
    int32_t     il;
    return (t->op == GGML_OP_RMS_NORM || t->op == GGML_OP_NORM) && all_rows(t->src[0])->op != GGML_OP_FILL &&
           split_name(t, name, il) && il == block;
}

// whether a norm reads the stream by this name, or with the zeros of a half added to it
static bool reads(const ggml_tensor * norm, const std::string & name) {
    const auto is_named = [&](const ggml_tensor * t) {
        return strstr(all_rows(t)->name, name.c_str()) != nullptr;
    };
    const ggml_tensor * t = norm->src[0];
    return is_named(t) || (t->op == GGML_OP_ADD && (is_named(t->src[0]) || is_named(t->src[1])));
}

bool llama_skip_streams::is_first_input(const ggml_tensor * t) {
    if (input_name != nullptr) {
        return strcmp(input_name, t->name) == 0;
    }
    if (n_inputs == 1 && kept.size() > 1 && is_norm(t, kept[1])) {
        n_inputs = 2;
        mismatch = !reads(t, "l_out-" + std::to_string(kept[0]));
    }
    return n_inputs == 0 && is_norm(t, kept[0]);
}

std::vector<float> * llama_skip_streams::target(const ggml_tensor * t, const ggml_tensor *& source) {
    source = t;
    if (is_first_input(t)) {
        source = t->op == GGML_OP_RMS_NORM || t->op == GGML_OP_NORM ? t->src[0] : t;
        return &first;
    }
    std::string name;
    int32_t     il;
    if (!split_name(t, name, il)) {
        return nullptr;
    }
    const auto it = std::find(kept.begin(), kept.end(), il);
    if (it == kept.end()) {
        return nullptr;
    }
    return name == "l_out" ? &ends[it - kept.begin()] : name == "skip_in" ? &scaled[it - kept.begin()] : nullptr;
}

bool llama_skip_streams::on_tensor(ggml_tensor * t, bool ask, void * user_data) {
    auto & self = *static_cast<llama_skip_streams *>(user_data);
    if (!self.active) {
        return !ask;
    }
    const ggml_tensor *  source;
    std::vector<float> * values = self.target(t, source);
    if (ask) {
        return values != nullptr;
    }
    if (values == &self.first) {
        self.n_inputs = 1;
    } else if (values == &self.ends.back()) {
        self.n_inputs = 0; // another graph may follow
    }
    if (values != nullptr && source->type == GGML_TYPE_F32 && ggml_is_contiguous(source)) {
        const size_t n = values->size();
        values->resize(n + ggml_nelements(source));
        ggml_backend_tensor_get(source, values->data() + n, 0, ggml_nbytes(source));
    }
    return true; // go on computing
}

void llama_skip_streams::begin(const std::vector<int32_t> & kept_, const std::string & arch_) {
    kept       = kept_;
    arch       = arch_;
    input_name = llama_skip_arch_of(llm_arch_from_string(arch)).input_name;
    active     = true;
    n_inputs   = 0;
    mismatch   = false;
    first.clear();
    ends.assign(kept.size(), {});
    scaled.assign(kept.size(), {});
}

void llama_skip_streams::end(size_t n_values, rows & inputs, rows * outputs) {
    stop();
    if (mismatch || first.size() != n_values) {
        throw std::runtime_error("hidden states: it is not known what the graph of architecture '" + arch +
                                 "' calls the stream that enters block " + std::to_string(kept[0]));
    }
    for (size_t i = 0; i + (outputs == nullptr) < kept.size(); ++i) {
        if (ends[i].size() != n_values) {
            throw std::runtime_error("hidden states: it is not known what the graph of architecture '" + arch +
                                     "' calls the stream that leaves block " + std::to_string(kept[i]));
        }
    }
    inputs.clear();
    inputs.push_back(std::move(first));
    inputs.insert(inputs.end(), ends.begin(), ends.end() - 1);
    for (size_t i = 0; outputs != nullptr && i < kept.size(); ++i) {
        outputs->push_back(std::move(scaled[i].empty() ? ends[i] : scaled[i]));
    }
    ends.clear();
    scaled.clear();
}
