#pragma once

// The module _core: a thin typed surface over llama.h, common/sampling.h and llama-skip.h. One file registers one
// class.

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

namespace py = pybind11;

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
