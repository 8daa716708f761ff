#include "plan/header.h"

#include "llama-model-loader.h"

static std::mutex & log_mutex() {
    static std::mutex mutex;
    return mutex;
}

llama_skip_quiet_log::llama_skip_quiet_log() : lock(log_mutex()) {
    llama_log_get(&callback, &user_data);
    llama_log_set(on_line, this);
}

llama_skip_quiet_log::~llama_skip_quiet_log() {
    llama_log_set(callback, user_data);
}

void llama_skip_quiet_log::on_line(ggml_log_level level, const char * text, void * data) {
    auto * self = (llama_skip_quiet_log *) data;
    if (std::this_thread::get_id() != self->thread) {
        self->callback(level, text, self->user_data);
    } else if (level == GGML_LOG_LEVEL_ERROR) {
        self->last_error = text;
    }
}

std::unique_ptr<llama_model_loader> llama_skip_open_header(const std::string & path, const llama_skip_quiet_log &) {
    std::vector<std::string> splits;
    return std::make_unique<llama_model_loader>(
        nullptr, nullptr, nullptr, path, splits, nullptr, LLAMA_LOAD_MODE_NONE, false, true, false, nullptr, nullptr);
}
