#include "log-scope.h"
#include "py-context.h"
#include "py-sampler.h"

class py_sampler {
public:
    py_sampler(std::shared_ptr<py_model> model_, const py_sampler_params & params) : model(std::move(model_)) {
        if (params.raw.mirostat < 0 || params.raw.mirostat > 2) {
            throw std::invalid_argument("mirostat_mode: has to be 0, 1 or 2");
        }
        log_scope log(model->verbose);

        common_params_sampling copy = params.raw; // common_sampler_init may change it
        try {
            raw.reset(common_sampler_init(model->raw, copy));
        } catch (const std::runtime_error & err) {
            throw std::invalid_argument(err.what());
        }
    }

    // The next token by the logits of output idx of the last batch (-1: the last one), taken as generated.
    llama_token sample(py_context & ctx, int32_t idx) {
        const auto lock = ctx.enter();

        py::gil_scoped_release nogil;
        log_scope              log(false);
        if (llama_get_logits_ith(ctx.raw, idx) == nullptr) {
            throw std::runtime_error(log.message("there are no logits to sample from"));
        }
        const llama_token token = common_sampler_sample(raw.get(), ctx.raw, idx);
        common_sampler_accept(raw.get(), token, /*is_generated =*/true);
        return token;
    }

    void accept(llama_token token, bool is_generated) {
        model->check_token(token);
        common_sampler_accept(raw.get(), token, is_generated);
    }

    void reset() { common_sampler_reset(raw.get()); }

    uint32_t seed() const { return common_sampler_get_seed(raw.get()); }

private:
    std::shared_ptr<py_model> model;
    common_sampler_ptr        raw;
};

void register_sampler(py::module_ & m) {
    using S = py_sampler;

    py::class_<S>(m, "Sampler")
        .def(py::init<std::shared_ptr<py_model>, const py_sampler_params &>(), py::arg("model"), py::arg("params"))
        .def("sample", &S::sample, py::arg("context"), py::arg("idx"))
        .def("accept", &S::accept, py::arg("token"), py::arg("is_generated"))
        .def("reset", &S::reset)
        .def_property_readonly("seed", &S::seed);
}
