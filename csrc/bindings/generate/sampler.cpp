#include "bindings/generate/sampler.h"

#include "bindings/context/decoder.h"
#include "bindings/generate/sampler-params.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>

using logits_array = py::array_t<float, py::array::c_style | py::array::forcecast>;

class py_sampler {
public:
    py_sampler(std::shared_ptr<py_model> model_, const py_sampler_params & params) : model(std::move(model_)) {
        if (params.raw.mirostat < 0 || params.raw.mirostat > 2) {
            throw std::invalid_argument("mirostat_mode: has to be 0, 1 or 2");
        }
        log_scope log(model->log);

        common_params_sampling copy = params.raw; // common_sampler_init may change it
        try {
            raw.reset(common_sampler_init(model->raw, copy));
        } catch (const std::runtime_error & err) {
            throw std::invalid_argument(err.what());
        }
    }

    // The next token by the logits of output idx of the last batch (-1: the last one), taken as generated. Other logits
    // than the batch's may be given, [n_vocab].
    llama_token sample(py_context & ctx, int32_t idx, const std::optional<logits_array> & logits) {
        const auto    lock    = ctx.enter();
        const auto    n_vocab = llama_vocab_n_tokens(model->vocab());
        const float * given   = logits ? logits->data() : nullptr;
        if (logits && (logits->ndim() != 1 || logits->size() != n_vocab)) {
            throw std::invalid_argument("logits: expected an array of " + std::to_string(n_vocab) + " values");
        }
        py::gil_scoped_release nogil;
        log_scope              log;
        float *                row = llama_get_logits_ith(ctx.raw, idx);
        if (row == nullptr) {
            throw std::runtime_error(log.message("there are no logits to sample from"));
        }
        std::vector<float> own;
        if (given != nullptr) {
            own.assign(row, row + n_vocab);
            std::copy(given, given + n_vocab, row);
        }
        const llama_token token = common_sampler_sample(raw.get(), ctx.raw, idx);
        std::copy(own.begin(), own.end(), row); // another sampler may ask for them
        common_sampler_accept(raw.get(), token, /*is_generated =*/true);
        return token;
    }

    void accept(llama_token token, bool is_generated) {
        model->check_token(token);
        common_sampler_accept(raw.get(), token, is_generated);
    }

private:
    std::shared_ptr<py_model> model;
    common_sampler_ptr        raw;
};

void register_sampler(py::module_ & m) {
    using S = py_sampler;

    py::class_<S>(m, "Sampler")
        .def(py::init<std::shared_ptr<py_model>, const py_sampler_params &>(), py::arg("model"), py::arg("params"))
        .def("sample", &S::sample, py::arg("context"), py::arg("idx"), py::arg("logits") = py::none())
        .def("accept", &S::accept, py::arg("token"), py::arg("is_generated"));
}
