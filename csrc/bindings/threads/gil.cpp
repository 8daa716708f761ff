#include "bindings/threads/gil.h"

#include <atomic>
#include <chrono>
#include <thread>

using namespace std::chrono_literals;

static const auto most_wait = 5s; // of a process that ends

static std::atomic<int>  n_inside{ 0 }; // threads without the GIL that do not stay
static std::atomic<bool> is_gone{ false };

bool must_stay() {
    return is_gone;
}

[[noreturn]] static void stay() {
    --n_inside;
    for (;;) {
        std::this_thread::sleep_for(1h);
    }
}

without_gil::without_gil() : state(PyEval_SaveThread()) {
    ++n_inside;
    if (must_stay()) {
        stay();
    }
}

without_gil::~without_gil() {
    if (must_stay()) {
        stay();
    }
    try {
        PyEval_RestoreThread(state);
    } catch (...) { // glibc unwinds a thread that ends
        stay();
    }
    --n_inside;
}

void with_gil(const std::function<void()> & call) {
    if (must_stay()) {
        stay();
    }
    PyGILState_STATE gil;
    try {
        gil = PyGILState_Ensure();
    } catch (...) {
        stay();
    }
    try {
        call();
    } catch (const std::exception &) {
        PyGILState_Release(gil);
        throw;
    } catch (...) {
        stay();
    }
    PyGILState_Release(gil);
}

// Behind the end of Python, and before the libraries are: what still computes would miss them.
static void wait_for_threads() {
    is_gone        = true;
    const auto end = std::chrono::steady_clock::now() + most_wait;
    while (n_inside > 0 && std::chrono::steady_clock::now() < end) {
        std::this_thread::sleep_for(1ms);
    }
}

// of a forked process, which has none of the others' threads
static void forget_threads() {
    n_inside = 0;
}

void register_gil() {
    Py_AtExit(wait_for_threads);
    const py::module_ os = py::module_::import("os");
    if (py::hasattr(os, "register_at_fork")) {
        os.attr("register_at_fork")(py::arg("after_in_child") = py::cpp_function(forget_threads));
    }
}
