#include "bindings/log-scope.h"

#include "bindings/threads/gil.h"

#include "llama.h"

#include <cstdio>
#include <utility>

static const size_t n_errors_max = 8;

static thread_local log_scope * current = nullptr;

static void on_log(ggml_log_level level, const char * text, void *) {
    if (current != nullptr) {
        current->add(level, text);
    } else if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

static thread_local bool check_has_failed = false;

// llama.cpp ends the process behind this. In a thread of ours that waits for it, leave its frames instead.
static void on_abort(const char * message) {
    if (current == nullptr) {
        fprintf(stderr, "%s\n", message);
        return;
    }
    check_has_failed        = true;
    const std::string text  = message;
    const size_t      slash = text.substr(0, text.find(": ")).find_last_of("/\\");
    throw check_failed("a check of llama.cpp failed, which is a fault to report: " +
                       text.substr(slash == std::string::npos ? 0 : slash + 1));
}

bool take_check_failed() {
    return std::exchange(check_has_failed, false);
}

void log_install() {
    llama_log_set(on_log, nullptr);
    ggml_set_abort_callback(on_abort);
}

static const char * level_name(ggml_log_level level) {
    switch (level) {
        case GGML_LOG_LEVEL_ERROR:
            return "error";
        case GGML_LOG_LEVEL_WARN:
            return "warning";
        case GGML_LOG_LEVEL_DEBUG:
            return "debug";
        default:
            return "info";
    }
}

log_scope::log_scope() : outer(current), target(nullptr) {
    current = this;
}

log_scope::log_scope(const py_log & target) : outer(current), target(&target) {
    current = this;
}

log_scope::~log_scope() {
    current = outer;
}

void log_scope::add(ggml_log_level level, const char * text) {
    const bool continues = level == GGML_LOG_LEVEL_CONT;
    if (!continues) {
        last = level;
    }
    if (last == GGML_LOG_LEVEL_ERROR) {
        if (continues && !errors.empty()) {
            errors.back() += text;
        } else {
            errors.emplace_back(text);
        }
        if (errors.size() > n_errors_max) {
            errors.pop_front();
        }
    }
    if (target != nullptr) {
        pass_on(text);
    }
}

void log_scope::pass_on(const char * text) const {
    if (!target->callback.is_none()) {
        with_gil([&]() {
            try {
                target->callback(level_name(last), py::bytes(text).attr("decode")("utf-8", "replace"));
            } catch (py::error_already_set & err) {
                if (err.matches(PyExc_KeyboardInterrupt)) {
                    PyErr_SetInterrupt(); // what runs looks for it
                    return;
                }
                err.discard_as_unraisable(target->callback);
            }
        });
    } else if (target->verbose && last != GGML_LOG_LEVEL_DEBUG) {
        fputs(text, stderr);
    }
}

std::string log_scope::message(const std::string & what) const {
    std::string res = what;
    for (const auto & line : errors) {
        res += "\n" + line.substr(0, line.find_last_not_of("\r\n") + 1);
    }
    return res;
}
