#pragma once

// A model's file read without a word in the log.

#include "llama.h"

#include <mutex>
#include <string>
#include <thread>

// Drops the log lines of this thread while it lives, and keeps the last error among them.
class llama_skip_quiet_log {
public:
    llama_skip_quiet_log() {
        llama_log_get(&callback, &user_data);
        llama_log_set(on_line, this);
    }
    ~llama_skip_quiet_log() { llama_log_set(callback, user_data); }

    const std::string & error() const { return last_error; }

private:
    static std::mutex & mutex() {
        static std::mutex m;
        return m;
    }

    static void on_line(ggml_log_level level, const char * text, void * data) {
        auto * self = (llama_skip_quiet_log *) data;
        if (std::this_thread::get_id() != self->thread) {
            self->callback(level, text, self->user_data);
        } else if (level == GGML_LOG_LEVEL_ERROR) {
            self->last_error = text;
        }
    }

    std::lock_guard<std::mutex> lock{ mutex() };
    std::thread::id             thread = std::this_thread::get_id();
    ggml_log_callback           callback;
    void *                      user_data;
    std::string                 last_error;
};
