#pragma once

#include "bindings/bindings.h"

#include "ggml.h"

#include <deque>
#include <string>

// Where the lines of one model go: to stderr if verbose, or to a Python function of level and text.
struct py_log {
    bool       verbose  = false;
    py::object callback = py::none();
};

// A check of llama.cpp failed, which otherwise ends the process.
struct check_failed : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// whether one failed in this thread since the last call
bool take_check_failed();

// Routes llama.cpp's log to the log_scope of the thread that writes the line. Without one only errors are shown.
void log_install();

// While it lives: keeps this thread's ERROR lines and passes all of its lines on. Needs no GIL.
class log_scope {
public:
    log_scope();
    explicit log_scope(const py_log & target);
    ~log_scope();

    log_scope(const log_scope &)             = delete;
    log_scope & operator=(const log_scope &) = delete;

    // `what`, and below it the last ERROR lines
    std::string message(const std::string & what) const;

    void add(ggml_log_level level, const char * text);

private:
    void pass_on(const char * text) const;

    log_scope *             outer;
    const py_log *          target;                     // may be null
    ggml_log_level          last = GGML_LOG_LEVEL_NONE; // what a CONT line continues
    std::deque<std::string> errors;
};
