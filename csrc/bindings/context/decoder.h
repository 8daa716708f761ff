#pragma once

#include "bindings/context/params.h"
#include "bindings/model/model.h"
#include "graph/streams.h"

#include <exception>
#include <mutex>
#include <vector>

// A context and its batches; what Python sees of it is registered elsewhere.
class py_context {
public:
    py_context(std::shared_ptr<py_model> model, const py_context_params & params);
    ~py_context();

    py_context(const py_context &)             = delete;
    py_context & operator=(const py_context &) = delete;

    // What is held while a thread is inside. A check that failed meanwhile leaves a context that nothing can rely on.
    class entered {
    public:
        explicit entered(py_context & ctx);
        ~entered() { ctx.is_broken = take_check_failed() || ctx.is_broken; }

        entered(const entered &) = delete;

    private:
        py_context &                 ctx;
        std::unique_lock<std::mutex> lock;
        log_scope                    log;
    };

    // Call with the GIL held, before it is released; throws std::runtime_error if another thread is inside.
    entered enter() { return entered(*this); }

    // Removes what a sequence holds from position n on. Returns what is left, n or 0: a memory that cannot go back so
    // far (a recurrent one, or a sliding window that is gone) then holds nothing of it. A batch that failed may have
    // taken the window's place.
    int32_t keep(llama_seq_id seq_id, int32_t n, bool has_failed = false);

    // tokens that may be given at once: a batch, or what the model has positions for
    int32_t n_most() const {
        const int32_t n_batch = llama_n_batch(raw);
        return n_positions > 0 && n_positions < n_batch ? n_positions : n_batch;
    }

    // Decodes tokens of a sequence from position pos on, n_batch at a time; those from `first` on are outputs, whose
    // logits go to `rows` ([n - first, n_vocab]) if it is not null. When it throws, nothing from pos on is left.
    void decode(
        const std::vector<llama_token> & tokens, llama_pos pos, llama_seq_id seq_id, int32_t first, float * rows);

    // The same for `n` rows of the residual stream, [n, n_embd], as what enters the first block that runs.
    void decode_stream(
        const float * stream, int32_t n, llama_pos pos, llama_seq_id seq_id, int32_t first, float * rows);

    llama_memory_t memory() const { return llama_get_memory(raw); }

    // Decodes sequences at once, each from position 0 of its own, with all tokens as outputs.
    void decode_sequences(const std::vector<std::vector<llama_token>> & sequences);

    // whether to give up a computation: Ctrl-C is seen on the main thread, while a batch is computed
    bool should_abort();

    std::shared_ptr<py_model> model;
    llama_context *           raw = nullptr;
    llama_skip_streams        states;
    bool                      has_states = false; // whether `states` sees the graphs

private:
    void add_token(llama_token token, llama_pos pos, llama_seq_id seq_id, bool is_output);
    void decode_batch(const llama_batch & batch);
    void decode_all(const llama_token * tokens, const float * stream, int32_t n, llama_pos pos, llama_seq_id seq_id,
        int32_t first, float * rows);

    void check_positions(int64_t n) const;
    void set_embeddings(bool value);

    std::mutex         mutex;
    bool               is_broken        = false;
    bool               has_embeddings   = false;
    bool               gives_embeddings = true; // where it has them
    int32_t            n_positions      = 0;
    llama_batch        batch            = {};
    std::exception_ptr interrupt;
    int64_t            t_signals_us = 0; // when signals were last looked at
};
