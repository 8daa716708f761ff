#include "bypass/buffers.h"

#include "bypass/file.h"

#include "llama-impl.h"
#include "llama-model.h"

#include <stdexcept>

static ggml_backend_dev_t cpu_device() {
    return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

// the device whose memory it is: pinned host memory names the one that it is pinned for
static ggml_backend_dev_t device_of(ggml_backend_buffer_type_t buft) {
    const ggml_backend_dev_t dev = ggml_backend_buft_get_device(buft);
    if (dev == nullptr || (ggml_backend_buft_is_host(buft) && buft != ggml_backend_dev_buffer_type(dev))) {
        return cpu_device();
    }
    return dev;
}

// the device of block il, or the one that holds its weights where all of them are overridden; -1: of the embeddings
static ggml_backend_dev_t device_of_block(const llama_model & model, int32_t il) {
    if (il < 0) {
        return cpu_device(); // upstream's dev_input
    }
    const std::string  prefix = format("blk.%d.", il);
    ggml_backend_dev_t dev    = model.dev_layer(il);
    ggml_backend_dev_t other  = nullptr;
    for (const auto & [name, t] : model.tensors_by_name) {
        if (name.compare(0, prefix.size(), prefix) == 0 && t->buffer != nullptr) {
            other = device_of(ggml_backend_buffer_get_type(t->buffer));
            if (other == dev) {
                return dev;
            }
        }
    }
    return other != nullptr ? other : dev;
}

// whether the device multiplies by w: a matrix, or a vector for each channel
static bool can_run(ggml_backend_dev_t dev, const ggml_tensor * w, bool is_matrix) {
    const ggml_context_ptr        ctx(ggml_init({ 4 * ggml_tensor_overhead(), nullptr, /*no_alloc*/ true }));
    const ggml_backend_buffer_ptr buf(ggml_backend_buft_alloc_buffer(ggml_backend_dev_buffer_type(dev), 0));

    ggml_tensor * weight = ggml_dup_tensor(ctx.get(), w);
    ggml_tensor * x      = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, w->ne[0], 512);
    ggml_tensor * op     = is_matrix ? ggml_mul_mat(ctx.get(), weight, x) : ggml_mul(ctx.get(), x, weight);
    weight->buffer       = buf.get();
    return ggml_backend_dev_supports_op(dev, op);
}

static ggml_backend_buffer_type_t choose_buft(const llama_model & model, const llama_skip_bypass_tensors & gap) {
    ggml_backend_dev_t dev = device_of_block(model, gap.first - 1);
    for (const ggml_tensor * t : gap.tensors()) {
        if (!can_run(dev, t, t == gap.u || t == gap.v)) {
            LLAMA_LOG_WARN("skip: device %s does not multiply by %s, the bypass at block %d stays on the host\n",
                ggml_backend_dev_name(dev), ggml_type_name(t->type), gap.first);
            dev = cpu_device();
        }
    }
    return ggml_backend_dev_buffer_type(dev);
}

llama_skip_bypasses::llama_skip_bypasses(
    std::unique_ptr<llama_skip_bypass_file> file, std::vector<llama_skip_bypass_tensors> gaps)
    : file(std::move(file)), gaps(std::move(gaps)) {}

llama_skip_bypasses::~llama_skip_bypasses() = default;

void llama_skip_bypasses::read_data() {
    for (auto & gap : gaps) {
        file->hash(gap);
    }
}

size_t llama_skip_bypasses::n_bytes() const {
    size_t size = 0;
    for (const auto & gap : gaps) {
        size += gap.n_bytes();
    }
    return size;
}

int64_t llama_skip_bypasses::n_elements() const {
    int64_t n = 0;
    for (const auto & gap : gaps) {
        for (const ggml_tensor * t : gap.tensors()) {
            n += ggml_nelements(t);
        }
    }
    return n;
}

ggml_context * llama_skip_bypasses::ctx_for(ggml_backend_buffer_type_t buft) {
    for (const auto & p : parts) {
        if (p.buft == buft) {
            return p.ctx.get();
        }
    }
    const ggml_init_params params = { 4 * gaps.size() * ggml_tensor_overhead(), nullptr, /*no_alloc*/ true };
    parts.push_back({ buft, ggml_context_ptr(ggml_init(params)), nullptr, 0 });
    return parts.back().ctx.get();
}

// With no_alloc a buffer of no bytes, which keeps the scheduler from allocating the tensors.
static void allocate(llama_skip_bypasses::part & p, bool no_alloc) {
    p.size = ggml_backend_alloc_ctx_tensors_from_buft_size(p.ctx.get(), p.buft);
    p.buf.reset(no_alloc ? ggml_backend_buft_alloc_buffer(p.buft, 0)
                         : ggml_backend_alloc_ctx_tensors_from_buft(p.ctx.get(), p.buft));
    if (!p.buf) {
        throw std::runtime_error(
            format("unable to allocate %zu bytes of %s for a bypass", p.size, ggml_backend_buft_name(p.buft)));
    }
    ggml_tensor * first = no_alloc ? ggml_get_first_tensor(p.ctx.get()) : nullptr;
    for (ggml_tensor * t = first; t != nullptr; t = ggml_get_next_tensor(p.ctx.get(), t)) {
        t->buffer = p.buf.get();
    }
    // the scheduler places an operation where its weights are
    ggml_backend_buffer_set_usage(p.buf.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    LLAMA_LOG_INFO(
        "skip: %12s bypass buffer size = %8.2f MiB\n", ggml_backend_buffer_name(p.buf.get()), p.size / 1024.0 / 1024.0);
}

void llama_skip_bypasses::load(const llama_model & model) {
    for (auto & gap : gaps) {
        ggml_context * ctx = ctx_for(choose_buft(model, gap));
        for (ggml_tensor ** t : { &gap.a, &gap.b, &gap.u, &gap.v }) {
            if (*t != nullptr) {
                *t = ggml_set_name(ggml_dup_tensor(ctx, *t), (*t)->name);
            }
        }
    }
    for (auto & p : parts) {
        allocate(p, model.hparams.no_alloc);
    }
    for (const auto & gap : gaps) {
        for (ggml_tensor * t : gap.tensors()) {
            if (!model.hparams.no_alloc) {
                ggml_backend_tensor_set(t, file->read(t).data(), 0, ggml_nbytes(t));
            }
        }
    }
    file.reset();
}

void llama_skip_bypass_sizes(
    const llama_skip_bypasses * bypasses, const std::function<void(ggml_backend_buffer_type_t, size_t)> & add) {
    for (size_t i = 0; bypasses != nullptr && i < bypasses->loaded().size(); ++i) {
        add(bypasses->loaded()[i].buft, bypasses->loaded()[i].size);
    }
}
