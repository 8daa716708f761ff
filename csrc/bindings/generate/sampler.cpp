#include "bindings/generate/sampler.h"

#include "bindings/context/decoder.h"
#include "bindings/generate/grammar.h"
#include "bindings/generate/sampler-params.h"
#include "bindings/threads/gil.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <optional>

using logits_array = py::array_t<float, py::array::c_style | py::array::forcecast>;

class py_sampler {
public:
    py_sampler(std::shared_ptr<py_model> model_, const py_sampler_params & params) : model(std::move(model_)) {
        if (params.raw.mirostat < 0 || params.raw.mirostat > 2) {
            throw std::invalid_argument("mirostat_mode: has to be 0, 1 or 2");
        }
        log_scope log(model->log);

        check_grammar(common_grammar_value(params.raw.grammar));
        logit_bias = params.raw.logit_bias;

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
        const without_gil nogil;
        log_scope         log;
        float *           row = llama_get_logits_ith(ctx.raw, idx);
        if (row == nullptr) {
            throw std::runtime_error(log.message("there are no logits to sample from"));
        }
        std::vector<float> own;
        if (given != nullptr) {
            own.assign(row, row + n_vocab);
            std::copy(given, given + n_vocab, row);
        }
        llama_token token = LLAMA_TOKEN_NULL;
        try {
            token = any_left(row, n_vocab) ? common_sampler_sample(raw.get(), ctx.raw, idx) : LLAMA_TOKEN_NULL;
        } catch (...) {
            std::copy(own.begin(), own.end(), row);
            throw;
        }
        std::copy(own.begin(), own.end(), row); // another sampler may ask for them
        if (token == LLAMA_TOKEN_NULL || is_excluded(token)) {
            throw std::runtime_error("no token is left: biases, logits processors and grammar exclude all of them");
        }
        common_sampler_accept(raw.get(), token, /*is_generated =*/true);
        return token;
    }

    void accept(llama_token token, bool is_generated) {
        model->check_token(token);
        log_scope log;
        common_sampler_accept(raw.get(), token, is_generated);
    }

private:
    std::shared_ptr<py_model>     model;
    common_sampler_ptr            raw;
    std::vector<llama_logit_bias> logit_bias;

    // whether a token has a chance before any sampler: upstream takes an arbitrary one, or asserts, where none has
    bool any_left(const float * row, int32_t n_vocab) const {
        const auto is_left = [](float logit) {
            return logit > -INFINITY;
        };
        int64_t n_left = std::count_if(row, row + n_vocab, is_left);
        for (const auto & bias : logit_bias) {
            n_left -= is_left(row[bias.token]) && !is_left(row[bias.token] + bias.bias) ? 1 : 0;
        }
        return n_left > 0;
    }

    // whether the last sampled token is one that a bias, a processor or the grammar excludes
    bool is_excluded(llama_token token) const {
        const llama_token_data_array * found = common_sampler_get_candidates(raw.get(), /*do_sort =*/false);
        for (size_t i = 0; i < found->size; ++i) {
            if (found->data[i].id == token) {
                return !(found->data[i].logit > -INFINITY);
            }
        }
        return false;
    }
};

void register_sampler(py::module_ & m) {
    using S = py_sampler;

    py::class_<S>(m, "Sampler")
        .def(py::init<std::shared_ptr<py_model>, const py_sampler_params &>(), py::arg("model"), py::arg("params"))
        .def("sample", &S::sample, py::arg("context"), py::arg("idx"), py::arg("logits") = py::none())
        .def("accept", &S::accept, py::arg("token"), py::arg("is_generated"));
}
