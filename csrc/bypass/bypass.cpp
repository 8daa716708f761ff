// What a bypass with tensors is: its description, and its part of a graph.

#include "bypass/bypass.h"

#include "llama-graph.h"
#include "llama-impl.h"

std::vector<ggml_tensor *> llama_skip_bypass_tensors::tensors() const {
    std::vector<ggml_tensor *> res;
    for (ggml_tensor * t : { a, b, u, v }) {
        if (t != nullptr) {
            res.push_back(t);
        }
    }
    return res;
}

size_t llama_skip_bypass_tensors::n_bytes() const {
    size_t size = 0;
    for (const ggml_tensor * t : tensors()) {
        size += ggml_nbytes(t);
    }
    return size;
}

static std::string kind_str(const llama_skip_bypass_tensors & bypass) {
    return bypass.u ? format("linear (rank %d)", (int) bypass.rank()) : "affine";
}

std::string llama_skip_bypass_str(const llama_skip & skip) {
    std::string text;
    size_t      size = 0;
    for (const auto * bypass : skip.bypass) {
        if (bypass != nullptr) {
            text += format("%s at %d, ", kind_str(*bypass).c_str(), bypass->first);
            size += bypass->n_bytes();
        }
    }
    return text.empty() ? "" : text + format("%.2f MiB", size / 1024.0 / 1024.0);
}

std::string llama_skip_bypass_hashes(const llama_skip & skip) {
    std::string text;
    for (const auto * bypass : skip.bypass) {
        if (bypass != nullptr) {
            text += format("%s%d:%s", text.empty() ? "" : ",", bypass->first, bypass->hash.c_str());
        }
    }
    return text;
}

ggml_tensor * llama_skip_apply_bypass(
    const llm_graph_context & llm, ggml_tensor * x, const llama_skip_bypass_tensors & bypass, int il) {
    const auto named = [&](ggml_tensor * t, const char * name) {
        llm.cb(t, name, il);
        return t;
    };
    const auto product = [&](ggml_tensor * w, ggml_tensor * t, const char * name) {
        ggml_tensor * res = ggml_mul_mat(llm.ctx0, w, t);
        ggml_prec_set_acc(res, GGML_PREC_F32);
        return named(res, name);
    };
    ggml_tensor * y = bypass.a ? named(ggml_mul(llm.ctx0, x, bypass.a), "skip_a") : x;
    if (bypass.u) {
        ggml_tensor * z = x;
        if (bypass.norm_eps >= 0.0f) {
            z = named(ggml_rms_norm(llm.ctx0, x, bypass.norm_eps), "skip_z");
        }
        z = product(bypass.u, product(bypass.v, z, "skip_v"), "skip_u");
        y = named(ggml_add(llm.ctx0, y, z), "skip_y");
    }
    return bypass.b ? named(ggml_add(llm.ctx0, y, bypass.b), "skip_b") : y;
}
