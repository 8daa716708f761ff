#pragma once

#include "py-model.h"

#include <exception>
#include <mutex>

struct py_context_params {
    llama_context_params raw = llama_context_default_params();
};

class py_context {
public:
    py_context(std::shared_ptr<py_model> model, const py_context_params & params);
    ~py_context();

    py_context(const py_context &)             = delete;
    py_context & operator=(const py_context &) = delete;

    // Call with the GIL held, before it is released; throws std::runtime_error if another thread is inside.
    std::unique_lock<std::mutex> enter();

    // Decodes tokens of a sequence from position pos on, n_batch at a time; those from `first` on are outputs, whose
    // logits go to `rows` ([n - first, n_vocab]) if it is not null. When it throws, nothing from pos on is left.
    void decode(
        const std::vector<llama_token> & tokens, llama_pos pos, llama_seq_id seq_id, int32_t first, float * rows);

    llama_memory_t memory() const { return llama_get_memory(raw); }

    // whether to give up a computation: Ctrl-C is seen on the main thread, while a batch is computed
    bool should_abort();

    std::shared_ptr<py_model> model;
    llama_context *           raw = nullptr;

private:
    void decode_batch();

    std::mutex         mutex;
    llama_batch        batch = {};
    std::exception_ptr interrupt;
    int64_t            t_signals_us = 0; // when signals were last looked at
};

// the methods about what the context remembers, in context-memory.cpp
void register_context_memory(py::class_<py_context> & c);
