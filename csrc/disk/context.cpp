#include "disk/context.h"

#include "disk/pager.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

bool llama_context::skip_disk_unchanged() const {
    const std::string reason = model.skip_disk ? model.skip_disk->files->changed() : "";
    if (!reason.empty()) {
        LLAMA_LOG_ERROR("skip: %s\n", reason.c_str());
    }
    return reason.empty();
}

bool llama_context::skip_disk_begin(const llm_graph_result & res) {
    if (!model.skip_disk) {
        return true;
    }
    if (!skip_disk_unchanged()) {
        return false;
    }
    if (!skip_disk_run) {
        skip_disk_run = std::make_shared<llama_skip_disk_run>();
    }
    const int32_t n_file = model.hparams.n_layer() / model.hparams.skip.model.n_loop;
    const bool    follow =
        skip_disk_run->begin(*model.skip_disk, res.skip_trace.disk, n_file, cparams.cb_eval, cparams.cb_eval_user_data);
    ggml_backend_sched_set_eval_callback(sched.get(), follow ? llama_skip_disk_run::eval : cparams.cb_eval,
        follow ? skip_disk_run.get() : cparams.cb_eval_user_data);
    return true;
}

void llama_context::skip_disk_end(ggml_status status) {
    if (model.skip_disk) {
        model.skip_disk->end(status == GGML_STATUS_SUCCESS);
    }
}

static bool is_view(ggml_op op) {
    return op == GGML_OP_NONE || op == GGML_OP_RESHAPE || op == GGML_OP_VIEW || op == GGML_OP_PERMUTE ||
           op == GGML_OP_TRANSPOSE;
}

bool llama_context::skip_disk_nodes(int32_t il, int32_t & n_host, int32_t & n_device) const {
    n_host = n_device = 0;
    if (gf_res_prev_active == nullptr) {
        return false;
    }
    bool known = false;
    for (const auto & span : gf_res_prev_active->skip_trace.disk.spans) {
        if (span.il != il) {
            continue;
        }
        known = true;

        ggml_context * ctx = gf_res_prev_active->get_ctx();
        for (ggml_tensor * t = span.before; t != span.last;) {
            t                      = t ? ggml_get_next_tensor(ctx, t) : ggml_get_first_tensor(ctx);
            ggml_backend_t backend = is_view(t->op) ? nullptr : ggml_backend_sched_get_tensor_backend(sched.get(), t);
            n_host += backend != nullptr && backend == backend_cpu;
            n_device += backend != nullptr && backend != backend_cpu;
        }
    }
    return known;
}

std::shared_ptr<llama_skip_disk_pager> llama_skip_disk_start(
    std::shared_ptr<llama_skip_disk_files> files, const llama_skip & skip) {
    return files ? std::make_shared<llama_skip_disk_pager>(std::move(files), skip.disk) : nullptr;
}

std::function<std::pair<uint64_t, uint64_t>()> llama_skip_disk_memory(const llama_model * model) {
    // not the pager: its thread has to end with the model
    const auto files = model->skip_disk ? model->skip_disk->files : nullptr;
    return [weak = std::weak_ptr<llama_skip_disk_files>(files)]() -> std::pair<uint64_t, uint64_t> {
        const auto files = weak.lock();
        if (!files) {
            return { 0, 0 };
        }
        return { files->n_bytes_mapped(), files->n_bytes_resident() };
    };
}
