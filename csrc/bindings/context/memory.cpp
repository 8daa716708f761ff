#include "bindings/context/memory.h"

#include "bindings/threads/gil.h"

#include "../src/llama-ext.h"

#include <pybind11/stl.h>

#include <map>

static int32_t keep(py_context & ctx, int32_t n_tokens) {
    const auto lock = ctx.enter();
    return ctx.keep(/*seq_id =*/0, n_tokens);
}

// device name -> bytes of weights, of the context (KV and recurrent state), of compute buffers
static std::map<std::string, std::array<size_t, 3>> memory_breakdown(py_context & ctx) {
    const auto lock = ctx.enter();

    std::map<std::string, std::array<size_t, 3>> res;
    for (const auto & [buft, mb] : llama_get_memory_breakdown(ctx.raw)) {
        // pinned buffers are host memory, whichever back-end hands them out
        ggml_backend_dev_t dev = ggml_backend_buft_is_host(buft)
                                     ? ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)
                                     : ggml_backend_buft_get_device(buft);

        auto & sum = res[dev ? ggml_backend_dev_name(dev) : ggml_backend_buft_name(buft)];
        sum[0] += mb.model;
        sum[1] += mb.context;
        sum[2] += mb.compute;
    }
    return res;
}

template <typename Size, typename Get>
static py::bytes get_state(py_context & ctx, Size && size, Get && get) {
    const auto  lock = ctx.enter();
    std::string res;
    {
        const without_gil nogil;
        log_scope         log(ctx.model->log);

        res.resize(size());
        const size_t n = get((uint8_t *) res.data(), res.size());
        if (n == 0) {
            throw std::runtime_error(log.message("cannot save the state"));
        }
        res.resize(n);
    }
    return py::bytes(res);
}

template <typename Set>
static void put_state(py_context & ctx, const py::bytes & state, Set && set) {
    const auto             lock = ctx.enter();
    const std::string_view data = state;

    const without_gil nogil;
    log_scope         log(ctx.model->log);
    if (set((const uint8_t *) data.data(), data.size()) == 0) {
        throw std::runtime_error(log.message("cannot load the state"));
    }
}

static py::bytes state(py_context & ctx) {
    return get_state(
        ctx, [&]() { return llama_state_get_size(ctx.raw); },
        [&](uint8_t * p, size_t n) { return llama_state_get_data(ctx.raw, p, n); });
}

static void set_state(py_context & ctx, const py::bytes & state) {
    put_state(ctx, state, [&](const uint8_t * p, size_t n) { return llama_state_set_data(ctx.raw, p, n); });
}

void register_context_memory(py::class_<py_context> & c) {
    c.def("keep", keep, py::arg("n_tokens"))
        .def_property_readonly(
            "has_memory", [](const py_context & ctx) { return llama_get_memory(ctx.raw) != nullptr; })
        .def("memory_breakdown", memory_breakdown)
        .def("state", state)
        .def("set_state", set_state, py::arg("state"));
}
