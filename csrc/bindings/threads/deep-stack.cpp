#include "bindings/threads/deep-stack.h"

#include "bindings/log-scope.h"

#include <exception>

#ifndef _WIN32
#include <pthread.h>

namespace {

struct deep_call {
    const std::function<void()> * call;
    std::exception_ptr            error;
};

} // namespace

static void * run(void * data) {
    auto &    deep = *(deep_call *) data;
    log_scope log; // a check that fails here is an exception too
    try {
        (*deep.call)();
    } catch (...) {
        deep.error = std::current_exception();
    }
    return nullptr;
}

void on_deep_stack(size_t n_bytes, const std::function<void()> & call) {
    deep_call      deep = { &call, nullptr };
    pthread_attr_t attributes;
    pthread_t      thread;
    pthread_attr_init(&attributes);
    const bool is_set     = pthread_attr_setstacksize(&attributes, n_bytes) == 0;
    const bool is_running = is_set && pthread_create(&thread, &attributes, run, &deep) == 0;
    pthread_attr_destroy(&attributes);
    if (!is_running) {
        call();
        return;
    }
    pthread_join(thread, nullptr);
    if (deep.error) {
        std::rethrow_exception(deep.error);
    }
}
#else
void on_deep_stack(size_t, const std::function<void()> & call) {
    call();
}
#endif
