#pragma once

// A model's files without the tensors of blocks left out.

#include "set/skip.h"

#include "ggml-cpp.h"

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

struct llama_file;
struct llama_mlock;
struct llama_mmap;
struct llama_model_loader;
struct llama_skip_disk_files;

// The sum of a context's tensors as its buffer type allocates them: what is loaded, whatever the load mode.
// With something left out or on disk the first of a context's buffers stands for all of them; otherwise the size of the
// buffer.
size_t llama_skip_buffer_size(const llama_skip & skip, const ggml_context * ctx,
    const std::vector<ggml_backend_buffer_ptr> & bufs, ggml_backend_buffer_t buf);

// the byte ranges of a model's files that stay unread, or on disk
class llama_skip_files {
public:
    using ranges  = std::vector<std::pair<size_t, size_t>>; // as llama_mmap's
    using buf_map = std::unordered_map<uint32_t, ggml_backend_buffer_t>;

    std::string path; // of the model's first file

    std::shared_ptr<llama_skip_disk_files> disk; // null without disk blocks; the model keeps it

    size_t n_bytes    = 0; // of the tensors left out
    size_t n_elements = 0;
    int    n_tensors  = 0;

    // The shapes of the tensors left out, without data; the model keeps them. They stand in its layers, so that
    // building the graph of an architecture that needs one after all ends in an error (llama_skip_check_graph) and not
    // in a crash.
    std::shared_ptr<ggml_context> shapes;

    // `skip` gets the sizes
    void init(const llama_model_loader & ml, llama_skip & skip);

    // null where the file has no such tensor
    ggml_tensor * shape_of(const std::string & name) const;

    bool active(uint32_t idx) const { return holes.count(idx) > 0; }

    // upstream's lazily read ranges and ours, sorted
    ranges lazy_ranges(uint32_t idx, const ranges & lazy) const;

    // unmaps what is left out and, with `populate`, reads the rest but for disk blocks
    void mapped(uint32_t idx, const llama_file & file, llama_mmap & mapping, bool populate) const;

    // One buffer for each run of the context's tensors that nothing left out or on disk interrupts; false where
    // upstream's single buffer is right.
    bool map_buffers(const llama_model_loader & ml, ggml_context * ctx, uint32_t idx, ggml_backend_dev_t dev,
        std::vector<ggml_backend_buffer_ptr> & bufs, buf_map & map);

    // the buffer to place a tensor in; `buf` for a tensor that map_buffers() did not place
    ggml_backend_buffer_t buffer_of(const ggml_tensor * tensor, ggml_backend_buffer_t buf) const;

    // locks a run up to the end of the tensor at [first, last); false: this file has no holes
    bool lock(std::vector<std::unique_ptr<llama_mlock>> & mlocks, uint32_t idx, void * addr, size_t first, size_t last);

private:
    // [first, last) of each run of tensors left out, and of these and those on disk
    std::map<uint32_t, ranges> left_out;
    std::map<uint32_t, ranges> holes;

    std::unordered_map<const ggml_tensor *, ggml_backend_buffer_t> buffers;

    std::map<std::pair<uint32_t, size_t>, size_t> locks; // by file and start of the run, index in mlocks

    // start of the run of kept bytes around offs
    size_t run_start(uint32_t idx, size_t offs) const;
};
