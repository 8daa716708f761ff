#include "bindings/context/decoder.h"

#include "bindings/threads/gil.h"
#include "load/model.h"

#include <algorithm>
#include <utility>

static bool on_abort(void * user_data) {
    return static_cast<py_context *>(user_data)->should_abort();
}

py_context::py_context(std::shared_ptr<py_model> model_, const py_context_params & params) : model(std::move(model_)) {
    const without_gil nogil;
    log_scope         log(model->log);

    llama_context_params raw_params = params.raw;
    if (raw_params.pooling_type == LLAMA_POOLING_TYPE_RANK && !llama_skip_can_rank(*model->raw)) {
        throw std::invalid_argument("pooling_type: this model does not rank texts");
    }
    n_positions    = llama_skip_n_positions(*model->raw);
    has_embeddings = raw_params.embeddings;
    if (params.hidden_states) {
        raw_params.cb_eval           = llama_skip_streams::on_tensor;
        raw_params.cb_eval_user_data = &states;
    }
    if (raw_params.embeddings) { // upstream reserves a token of each sequence, and asserts it
        raw_params.n_ubatch = std::max(raw_params.n_ubatch, std::min(raw_params.n_seq_max, raw_params.n_batch));
    }
    raw = llama_init_from_model(model->raw, raw_params);
    // what attends to all tokens at once is computed at once, which upstream asserts
    const bool is_whole = raw != nullptr && (llama_model_has_encoder(model->raw) || llama_get_memory(raw) == nullptr ||
                                                !llama_get_causal_attn(raw));
    if (is_whole && llama_n_ubatch(raw) < llama_n_batch(raw)) {
        raw_params.n_ubatch = llama_n_batch(raw);
        llama_free(raw);
        raw = llama_init_from_model(model->raw, raw_params);
    }
    if (raw == nullptr) {
        throw std::runtime_error(log.message("cannot create a context"));
    }
    has_states = params.hidden_states;
    batch      = llama_batch_init(llama_n_batch(raw), 0, 1);
    llama_set_abort_callback(raw, on_abort, this);
}

py_context::~py_context() {
    // in a forked process there are no threads to end, see py_model
    if (raw != nullptr && !model->is_foreign() && !is_broken) {
        log_scope log(model->log);
        llama_batch_free(batch);
        llama_free(raw);
    }
}

py_context::entered::entered(py_context & ctx) : ctx(ctx), log(ctx.model->log) {
    ctx.model->check_process();
    if (ctx.is_broken) {
        throw std::runtime_error("this context is closed: a check of llama.cpp failed in it");
    }
    lock = std::unique_lock<std::mutex>(ctx.mutex, std::try_to_lock);
    if (!lock) {
        throw std::runtime_error("this context is in use by another thread");
    }
    take_check_failed(); // one that failed elsewhere
}

bool py_context::should_abort() {
    if (interrupt || must_stay()) {
        return true;
    }
    const int64_t now = llama_time_us();
    if (now - t_signals_us < 100 * 1000) {
        return false;
    }
    t_signals_us = now;

    with_gil([&]() {
        if (PyErr_CheckSignals() != 0) {
            interrupt = std::make_exception_ptr(py::error_already_set());
        }
    });
    return interrupt != nullptr;
}

int32_t py_context::keep(llama_seq_id seq_id, int32_t n, bool has_failed) {
    const bool is_less = llama_memory_seq_pos_max(memory(), seq_id) >= n;
    if (is_less) {
        llama_memory_seq_rm(memory(), seq_id, n, -1);
    }
    // a recurrent state stands at the last position; what follows looks back over the window
    llama_pos first = n - 1;
    if (!model->is_recurrent() && (is_less || has_failed)) {
        first = std::max(n + 1 - llama_model_n_swa(model->raw), 0);
    }
    const bool is_held =
        llama_memory_seq_pos_max(memory(), seq_id) == n - 1 && llama_memory_seq_pos_min(memory(), seq_id) <= first;
    if (!is_held) {
        llama_memory_seq_rm(memory(), seq_id, -1, -1);
    }
    return is_held ? n : 0;
}

void py_context::check_positions(int64_t n) const {
    if (n_positions > 0 && n > n_positions) {
        throw std::runtime_error("the context is full: the model has " + std::to_string(n_positions) + " positions");
    }
}

// some architectures give no logits where they give embeddings
void py_context::set_embeddings(bool value) {
    if (has_embeddings && gives_embeddings != value && llama_get_memory(raw) != nullptr) {
        llama_set_embeddings(raw, value);
        gives_embeddings = value;
    }
}

void py_context::add_token(llama_token token, llama_pos pos, llama_seq_id seq_id, bool is_output) {
    const int32_t i    = batch.n_tokens++;
    batch.token[i]     = token;
    batch.pos[i]       = pos;
    batch.n_seq_id[i]  = 1;
    batch.seq_id[i][0] = seq_id;
    batch.logits[i]    = is_output;
}

void py_context::decode_batch(const llama_batch & batch) {
    if (llama_model_has_encoder(model->raw) && llama_model_has_decoder(model->raw)) {
        throw std::runtime_error("a model that answers what its encoder read is not supported here");
    }
    const int32_t ret = llama_decode(raw, batch);
    if (interrupt) {
        std::rethrow_exception(std::exchange(interrupt, nullptr));
    }
    if (ret == 1) {
        throw std::runtime_error("the context is full: n_ctx is " + std::to_string(llama_n_ctx_seq(raw)) + ", and " +
                                 std::to_string(batch.n_tokens) + " tokens were to follow at position " +
                                 std::to_string(batch.pos[0]));
    }
    if (ret != 0) {
        throw std::runtime_error("llama_decode failed with " + std::to_string(ret));
    }
}

void py_context::decode(
    const std::vector<llama_token> & tokens, llama_pos pos, llama_seq_id seq_id, int32_t first, float * rows) {
    decode_all(tokens.data(), nullptr, (int32_t) tokens.size(), pos, seq_id, first, rows);
}

void py_context::decode_stream(
    const float * stream, int32_t n, llama_pos pos, llama_seq_id seq_id, int32_t first, float * rows) {
    decode_all(nullptr, stream, n, pos, seq_id, first, rows);
}

// The positions of rows: with M-RoPE four of each, where upstream makes one of a token so many itself.
static std::vector<llama_pos> rope_sections(const llama_model * model, const llama_batch & batch) {
    const auto             rope = llama_model_rope_type(model);
    const bool             many = rope == LLAMA_ROPE_TYPE_MROPE || rope == LLAMA_ROPE_TYPE_IMROPE;
    std::vector<llama_pos> res;
    for (int section = 0; section < (many ? 3 : 1); ++section) {
        res.insert(res.end(), batch.pos, batch.pos + batch.n_tokens);
    }
    res.resize(many ? 4 * batch.n_tokens : batch.n_tokens, 0);
    return res;
}

void py_context::decode_all(const llama_token * tokens, const float * stream, int32_t n, llama_pos pos,
    llama_seq_id seq_id, int32_t first, float * rows) {
    check_positions((int64_t) pos + n);
    set_embeddings(false);
    const int32_t n_batch = llama_n_batch(raw);
    const size_t  n_vocab = llama_vocab_n_tokens(model->vocab());

    log_scope log(model->log);
    t_signals_us = llama_time_us();
    try {
        for (int32_t i0 = 0; i0 < n; i0 += n_batch) {
            batch.n_tokens = 0;
            for (int32_t i = i0; i < std::min(i0 + n_batch, n); ++i) {
                add_token(tokens != nullptr ? tokens[i] : 0, pos + i, seq_id, i >= first);
            }
            llama_batch            given = batch;
            std::vector<llama_pos> sections;
            if (stream != nullptr) {
                given.token = nullptr;
                given.embd  = const_cast<float *>(stream) + (size_t) i0 * llama_model_n_embd(model->raw);
                sections    = rope_sections(model->raw, batch);
                given.pos   = sections.data();
            }
            decode_batch(given);
            for (int32_t i = std::max(first - i0, 0); rows != nullptr && i < batch.n_tokens; ++i) {
                const float * row = llama_get_logits_ith(raw, i);
                std::copy(row, row + n_vocab, rows + (i0 + i - first) * n_vocab);
            }
        }
    } catch (const std::runtime_error & err) {
        keep(seq_id, pos, /*has_failed =*/true);
        throw std::runtime_error(log.message(err.what()));
    } catch (...) {
        keep(seq_id, pos, /*has_failed =*/true);
        throw;
    }
}

void py_context::decode_sequences(const std::vector<std::vector<llama_token>> & sequences) {
    size_t n_tokens = 0;
    for (const auto & tokens : sequences) {
        n_tokens += tokens.size();
        check_positions(tokens.size());
    }
    set_embeddings(true);
    if (n_tokens > llama_n_batch(raw) || sequences.size() > llama_n_seq_max(raw)) {
        throw std::invalid_argument(std::to_string(sequences.size()) + " sequences of " + std::to_string(n_tokens) +
                                    " tokens are too many at once: n_batch is " + std::to_string(llama_n_batch(raw)) +
                                    ", n_seq_max " + std::to_string(llama_n_seq_max(raw)));
    }
    log_scope log(model->log);
    t_signals_us = llama_time_us();
    llama_memory_clear(memory(), false);

    batch.n_tokens = 0;
    for (size_t s = 0; s < sequences.size(); ++s) {
        for (size_t i = 0; i < sequences[s].size(); ++i) {
            add_token(sequences[s][i], (llama_pos) i, (llama_seq_id) s, /*is_output =*/true);
        }
    }
    try {
        decode_batch(batch);
    } catch (const std::runtime_error & err) {
        llama_memory_clear(memory(), false);
        throw std::runtime_error(log.message(err.what()));
    } catch (...) {
        llama_memory_clear(memory(), false);
        throw;
    }
}
