#pragma once

// A model's file read as far as its header, without a word in the log.

#include "llama.h"

#include <memory>
#include <mutex>
#include <string>
#include <thread>

struct llama_model_loader;

// Drops the log lines of this thread while it lives, and keeps the last error among them.
class llama_skip_quiet_log {
public:
    llama_skip_quiet_log();
    ~llama_skip_quiet_log();

    const std::string & error() const { return last_error; }

private:
    static void on_line(ggml_log_level level, const char * text, void * data);

    std::lock_guard<std::mutex> lock;
    std::thread::id             thread = std::this_thread::get_id();
    ggml_log_callback           callback;
    void *                      user_data;
    std::string                 last_error;
};

// The caller holds the quiet log; throws std::exception.
std::unique_ptr<llama_model_loader> llama_skip_open_header(
    const std::string & path, const llama_skip_quiet_log & quiet);
