// A back-end without a device, in a library of its own, of this llama.cpp or, with API_VERSION, of another.

#include "ggml-backend-impl.h"

#include <cstdio>

#ifndef API_VERSION
#define API_VERSION GGML_BACKEND_API_VERSION
#endif

static const char * get_name(ggml_backend_reg_t) {
    return "EMPTY";
}

static size_t get_device_count(ggml_backend_reg_t) {
    fprintf(stderr, "EMPTY was asked for its devices\n");
    return 0;
}

static ggml_backend_reg_t registry() {
    static ggml_backend_reg reg = { API_VERSION, { get_name, get_device_count, nullptr, nullptr }, nullptr };
    return &reg;
}

#ifndef NO_INIT
GGML_BACKEND_DL_IMPL(registry)
#endif
