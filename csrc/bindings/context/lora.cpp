#include "bindings/context/lora.h"

#include "bindings/threads/gil.h"

struct py_lora {
    py_lora(std::shared_ptr<py_model> model_, const std::string & path) : model(std::move(model_)) {
        check_exists(path);
        model->check_process();

        const without_gil nogil;
        log_scope         log(model->log);
        raw = llama_adapter_lora_init(model->raw, path.c_str());
        if (raw == nullptr) {
            throw model_load_error(log.message("cannot load the LoRA adapter " + path));
        }
    }

    std::shared_ptr<py_model> model;
    llama_adapter_lora *      raw = nullptr; // llama.cpp frees it with the model
};

static void set_lora(py_context & ctx, const py_lora & lora, float scale) {
    if (lora.model != ctx.model) {
        throw std::invalid_argument("lora: the adapter was loaded for another model");
    }
    const auto        lock = ctx.enter();
    const without_gil nogil;
    log_scope         log(ctx.model->log);

    llama_adapter_lora * adapter = lora.raw;
    if (llama_set_adapters_lora(ctx.raw, &adapter, 1, &scale) != 0) {
        throw std::runtime_error(log.message("cannot use the LoRA adapter"));
    }
}

void register_lora(py::module_ & m, py::class_<py_context> & context) {
    py::class_<py_lora>(m, "Lora").def(
        py::init<std::shared_ptr<py_model>, const std::string &>(), py::arg("model"), py::arg("path"));
    context.def("set_lora", set_lora, py::arg("lora"), py::arg("scale"));
}
