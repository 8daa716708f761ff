#include "bindings/errors.h"

void register_errors(py::module_ &) {
    py::register_local_exception_translator([](std::exception_ptr p) {
        try {
            if (p) {
                std::rethrow_exception(p);
            }
        } catch (const model_load_error & err) {
            py::set_error(py::module_::import("llama_skip.errors").attr("ModelLoadError"), err.what());
        }
    });
}
