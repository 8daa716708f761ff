#include "bindings.h"

PYBIND11_MODULE(_core, m) {
    m.doc() = "Bindings over libllama; use llama_skip.Llama instead.";

    register_errors(m);
    register_system(m);
    register_model_params(m);
    register_model(m);
    register_context_params(m);
    register_context(m);
    register_sampler_params(m);
    register_sampler(m);
}
