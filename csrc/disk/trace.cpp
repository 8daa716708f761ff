#include "disk/trace.h"

#include "ggml.h"

ggml_tensor * llama_skip_disk_trace::last_tensor(ggml_tensor * prev) const {
    ggml_tensor * last = prev ? prev : ggml_get_first_tensor(ctx);
    while (ggml_tensor * next = last ? ggml_get_next_tensor(ctx, last) : nullptr) {
        last = next;
    }
    return last;
}

void llama_skip_disk_trace::note_step(int64_t il, int64_t bound) {
    ggml_tensor * last = last_tensor(spans.empty() ? nullptr : spans.back().last);
    if (is_open) {
        spans.back().last = last;
    }
    is_open = il < bound;
    if (is_open) {
        spans.push_back({ (int32_t) il, last, last });
    }
}
