#pragma once

#include "bindings/bindings.h"

#include <functional>

// Runs what follows without the GIL. Python ends daemon threads where they ask for the GIL while it is being finalized,
// by unwinding them, through destructors that must not throw: such a thread stays in here instead.
class without_gil {
public:
    without_gil();
    ~without_gil();

    without_gil(const without_gil &) = delete;

private:
    PyThreadState * state;
};

// Calls Python from within.
void with_gil(const std::function<void()> & call);

// whether Python is gone, and this thread has to come to its end
bool must_stay();

void register_gil();
