#include "bindings/context/methods.h"
#include "bindings/context/params.h"
#include "bindings/errors.h"
#include "bindings/generate/parser.h"
#include "bindings/generate/prompt.h"
#include "bindings/generate/sampler-params.h"
#include "bindings/generate/sampler.h"
#include "bindings/threads/gil.h"
#include "bindings/model/identity.h"
#include "bindings/model/methods.h"
#include "bindings/model/params.h"
#include "bindings/system.h"

#include "log.h"

PYBIND11_MODULE(_core, m) {
    m.doc() = "Bindings over libllama; use llama_skip.Llama instead.";

    common_log_set_verbosity_thold(-1); // errors of common/ are exceptions here; no thread that writes a log

    register_gil();
    register_errors(m);
    register_system(m);
    register_identity(m);
    register_model_params(m);
    register_model(m);
    register_context_params(m);
    register_context(m);
    register_chat(m);
    register_chat_parser(m);
    register_sampler_params(m);
    register_sampler(m);
}
