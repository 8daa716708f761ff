#pragma once

// The module _core: a thin typed surface over llama.h, common/sampling.h and llama-skip.h. One file registers one class.

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

namespace py = pybind11;

// becomes llama_skip.errors.ModelLoadError
struct model_load_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// a property over a field of the C struct `raw`; an enum travels as an int
#define RAW_FIELD(P, type, name)                                          \
    def_property(                                                         \
        #name, [](const P & p) { return static_cast<type>(p.raw.name); }, \
        [](P & p, type v) { p.raw.name = static_cast<decltype(p.raw.name)>(v); })

// the same for an enum whose values run from `first` to `last`
#define RAW_ENUM(P, name, first, last)                                                                               \
    def_property(                                                                                                    \
        #name, [](const P & p) { return (int) p.raw.name; },                                                         \
        [](P & p, int v) {                                                                                           \
            if (v < (int) (first) || v > (int) (last)) {                                                             \
                throw std::invalid_argument(#name ": " + std::to_string(v) + " is not within " +                     \
                                            std::to_string((int) (first)) + " and " + std::to_string((int) (last))); \
            }                                                                                                        \
            p.raw.name = static_cast<decltype(p.raw.name)>(v);                                                       \
        })

void register_errors(py::module_ & m);
void register_system(py::module_ & m);
void register_identity(py::module_ & m);
void register_model_params(py::module_ & m);
void register_model(py::module_ & m);
void register_context_params(py::module_ & m);
void register_context(py::module_ & m);
void register_sampler_params(py::module_ & m);
void register_sampler(py::module_ & m);
void register_chat(py::module_ & m);
