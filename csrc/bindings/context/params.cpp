#include "bindings/context/params.h"

static ggml_type check_type(const char * name, int type) {
    // types that llama.cpp no longer has kept their numbers, with blocks of size 0
    if (type < 0 || type >= GGML_TYPE_COUNT || ggml_blck_size((ggml_type) type) == 0) {
        throw std::invalid_argument(std::string(name) + ": " + std::to_string(type) + " is not a ggml type");
    }
    return (ggml_type) type;
}

void register_context_params(py::module_ & m) {
    using P = py_context_params;

    py::class_<P>(m, "ContextParams")
        .def(py::init<>())
        .RAW_FIELD(P, uint32_t, n_ctx)
        .RAW_FIELD(P, uint32_t, n_batch)
        .RAW_FIELD(P, uint32_t, n_ubatch)
        .RAW_FIELD(P, uint32_t, n_seq_max)
        .RAW_FIELD(P, uint32_t, n_outputs_max)
        .RAW_FIELD(P, int32_t, n_threads)
        .RAW_FIELD(P, int32_t, n_threads_batch)
        .RAW_ENUM(P, rope_scaling_type, LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED, LLAMA_ROPE_SCALING_TYPE_MAX_VALUE)
        .RAW_ENUM(P, pooling_type, LLAMA_POOLING_TYPE_UNSPECIFIED, LLAMA_POOLING_TYPE_RANK)
        .RAW_ENUM(P, attention_type, LLAMA_ATTENTION_TYPE_UNSPECIFIED, LLAMA_ATTENTION_TYPE_NON_CAUSAL)
        .RAW_ENUM(P, flash_attn_type, LLAMA_FLASH_ATTN_TYPE_AUTO, LLAMA_FLASH_ATTN_TYPE_ENABLED)
        .RAW_FIELD(P, float, rope_freq_base)
        .RAW_FIELD(P, float, rope_freq_scale)
        .RAW_FIELD(P, float, yarn_ext_factor)
        .RAW_FIELD(P, float, yarn_attn_factor)
        .RAW_FIELD(P, float, yarn_beta_fast)
        .RAW_FIELD(P, float, yarn_beta_slow)
        .RAW_FIELD(P, uint32_t, yarn_orig_ctx)
        .def_property(
            "type_k", [](const P & p) { return (int) p.raw.type_k; },
            [](P & p, int type) { p.raw.type_k = check_type("type_k", type); })
        .def_property(
            "type_v", [](const P & p) { return (int) p.raw.type_v; },
            [](P & p, int type) { p.raw.type_v = check_type("type_v", type); })
        .RAW_FIELD(P, bool, embeddings)
        .RAW_FIELD(P, bool, offload_kqv)
        .RAW_FIELD(P, bool, no_perf)
        .RAW_FIELD(P, bool, op_offload)
        .RAW_FIELD(P, bool, swa_full)
        .RAW_FIELD(P, bool, kv_unified)
        .def_readwrite("hidden_states", &P::hidden_states);
}
