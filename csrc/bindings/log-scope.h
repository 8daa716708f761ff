#pragma once

#include "ggml.h"

#include <deque>
#include <string>

// Routes llama.cpp's log to the log_scope of the thread that writes the line. Without one only errors are shown.
void log_install();

// While it lives: keeps this thread's ERROR lines and, if verbose, shows all of its lines on stderr.
class log_scope {
public:
    explicit log_scope(bool verbose);
    ~log_scope();

    log_scope(const log_scope &)             = delete;
    log_scope & operator=(const log_scope &) = delete;

    // `what`, and below it the last ERROR lines
    std::string message(const std::string & what) const;

    void add(ggml_log_level level, const char * text);

private:
    log_scope *             outer;
    bool                    verbose;
    ggml_log_level          last = GGML_LOG_LEVEL_NONE; // what a CONT line continues
    std::deque<std::string> errors;
};
