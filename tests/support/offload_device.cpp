// A device of GPU type that computes on the CPU and, unlike the one of ggml-rpc, asks for the operations of large
// batches whose weights are in host memory (op_offload). It remembers which blocks' tensors its operations read.

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

static ggml_backend_device & device();

//
// memory that the CPU back-end does not take for its own
//

static const char * buft_name(ggml_backend_buffer_type_t) {
    return "OFFLOAD";
}

static void buffer_free(ggml_backend_buffer_t buffer) {
    free(buffer->context);
}

static void * buffer_base(ggml_backend_buffer_t buffer) {
    return buffer->context;
}

static void memset_tensor(ggml_backend_buffer_t, ggml_tensor * t, uint8_t value, size_t offset, size_t size) {
    memset((char *) t->data + offset, value, size);
}

static void set_tensor(ggml_backend_buffer_t, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    memcpy((char *) t->data + offset, data, size);
}

static void get_tensor(ggml_backend_buffer_t, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    memcpy(data, (const char *) t->data + offset, size);
}

static void buffer_clear(ggml_backend_buffer_t buffer, uint8_t value) {
    memset(buffer->context, value, buffer->size);
}

static ggml_backend_buffer_t buft_alloc(ggml_backend_buffer_type_t buft, size_t size) {
    ggml_backend_buffer_i iface = {};
    iface.free_buffer           = buffer_free;
    iface.get_base              = buffer_base;
    iface.memset_tensor         = memset_tensor;
    iface.set_tensor            = set_tensor;
    iface.get_tensor            = get_tensor;
    iface.clear                 = buffer_clear;
    void * data                 = nullptr;
    return posix_memalign(&data, 64, size + 64) == 0 ? ggml_backend_buffer_init(buft, iface, data, size) : nullptr;
}

static size_t buft_alignment(ggml_backend_buffer_type_t) {
    return 64;
}

static ggml_backend_buffer_type_t buffer_type(ggml_backend_dev_t) {
    static ggml_backend_buffer_type type = { { buft_name, buft_alloc, buft_alignment, nullptr, nullptr, nullptr },
        &device(), nullptr };
    return &type;
}

//
// back-end
//

static std::set<int> & blocks_read() {
    static std::set<int> blocks;
    return blocks;
}

// a copy that the scheduler made of a weight has the weight's name in its own
static void note(const ggml_tensor * node) {
    for (const ggml_tensor * src : node->src) {
        int          il  = -1;
        const char * blk = src ? strstr(src->name, "blk.") : nullptr;
        if (blk && sscanf(blk, "blk.%d.", &il) == 1) {
            blocks_read().insert(il);
        }
    }
}

static const char * backend_name(ggml_backend_t) {
    return "OFFLOAD";
}

static void backend_free(ggml_backend_t backend) {
    ggml_backend_free((ggml_backend_t) backend->context);
    delete backend;
}

static ggml_status backend_compute(ggml_backend_t backend, ggml_cgraph * gf) {
    for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
        note(ggml_graph_node(gf, i));
    }
    return ggml_backend_graph_compute((ggml_backend_t) backend->context, gf);
}

static ggml_backend_t device_init(ggml_backend_dev_t dev, const char *) {
    static ggml_guid guid = { 'o', 'f', 'f', 'l', 'o', 'a', 'd' };

    ggml_backend_i iface = {};
    iface.get_name       = backend_name;
    iface.free           = backend_free;
    iface.graph_compute  = backend_compute;
    ggml_backend_t cpu   = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(cpu, 1);
    return new ggml_backend{ &guid, iface, dev, cpu };
}

//
// device
//

static const char * device_name(ggml_backend_dev_t) {
    return "OFFLOAD0";
}

static void device_memory(ggml_backend_dev_t, size_t * free, size_t * total) {
    *free = *total = (size_t) 8 << 30;
}

static enum ggml_backend_dev_type device_type(ggml_backend_dev_t) {
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

static void device_props(ggml_backend_dev_t dev, ggml_backend_dev_props * props) {
    *props                   = {};
    props->name              = device_name(dev);
    props->description       = device_name(dev);
    props->type              = device_type(dev);
    props->caps.mmap_support = true;
    device_memory(dev, &props->memory_free, &props->memory_total);
}

static bool device_supports_op(ggml_backend_dev_t, const ggml_tensor * op) {
    return ggml_backend_dev_supports_op(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), op);
}

static bool device_supports_buft(ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) {
    return buft == buffer_type(dev);
}

// as the CUDA back-end: operations that are worth a copy of their weights
static bool device_offload_op(ggml_backend_dev_t, const ggml_tensor * op) {
    return op->op != GGML_OP_GET_ROWS && op->ne[1] >= 32;
}

static const char * reg_name(ggml_backend_reg_t) {
    return "OFFLOAD";
}

static size_t reg_count(ggml_backend_reg_t) {
    return 1;
}

static ggml_backend_dev_t reg_device(ggml_backend_reg_t, size_t) {
    return &device();
}

static void * reg_address(ggml_backend_reg_t, const char *) {
    return nullptr;
}

static ggml_backend_reg & registry() {
    static ggml_backend_reg reg = { GGML_BACKEND_API_VERSION, { reg_name, reg_count, reg_device, reg_address },
        nullptr };
    return reg;
}

static ggml_backend_device & device() {
    static ggml_backend_device dev = {};
    if (dev.reg == nullptr) {
        dev.iface.get_name        = device_name;
        dev.iface.get_description = device_name;
        dev.iface.get_memory      = device_memory;
        dev.iface.get_type        = device_type;
        dev.iface.get_props       = device_props;
        dev.iface.init_backend    = device_init;
        dev.iface.get_buffer_type = buffer_type;
        dev.iface.supports_op     = device_supports_op;
        dev.iface.supports_buft   = device_supports_buft;
        dev.iface.offload_op      = device_offload_op;
        dev.reg                   = &registry();
    }
    return dev;
}

extern "C" ggml_backend_reg_t offload_device_reg() {
    return &registry();
}

// Writes a 1 for each block of which the device read a tensor since the last call, a 0 for others.
extern "C" void offload_device_blocks(uint8_t * blocks, int32_t n) {
    for (int32_t il = 0; il < n; ++il) {
        blocks[il] = blocks_read().count(il) > 0;
    }
    blocks_read().clear();
}
