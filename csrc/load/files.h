#pragma once

// Loading without the tensors of blocks left out; llama-model-loader.h includes this header.

#include "set/skip.h"

#include "llama-mmap.h"

#include "ggml-cpp.h"

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

struct ggml_context;
struct ggml_tensor;
struct llama_hparams;
struct llama_model;
struct llama_model_loader;
struct llama_skip_disk_files;
struct llama_skip_names;
struct llama_skip_plan;
struct llama_skip_spec;

// Fills the model's hparams.skip from the loader's overrides and takes the tensors of those blocks out of the loader's
// accounts. Throws std::invalid_argument before anything is read.
void llama_skip_load(llama_model_loader & ml, llama_model & model);

// Loads the tensors that the bypasses of the model's plan have, once the model has its own.
void llama_skip_load_bypasses(llama_model & model);

// What the model says about its blocks whatever is left out of it: hparams.skip's factors and loops.
void llama_skip_read_model(llama_model_loader & ml, llama_model & model);

// what is left out, with the owner of its bypasses, null where there are none
struct llama_skip_set {
    llama_skip                           skip;
    std::shared_ptr<llama_skip_bypasses> bypasses;
};

// what a model keeps of its loader for later
struct llama_skip_kept {
    std::string path;        // of its first file
    size_t      n_bytes = 0; // of all tensors of the file

    std::shared_ptr<ggml_context>        shapes; // of the tensors left out
    std::shared_ptr<llama_skip_bypasses> bypasses;
};

// Puts what the plan of a spec says in its place. Throws std::invalid_argument.
llama_skip_plan llama_skip_look_up(
    llama_model_loader & ml, const llama_hparams & hparams, llama_skip_spec & spec, llama_skip_names & names);

// What `spec` leaves out of the model that the loader has read the hyperparameters of; looks up its plan. Throws
// std::invalid_argument.
llama_skip_set llama_skip_resolve(
    llama_model_loader & ml, llama_model & model, const llama_skip_spec & spec, const llama_skip_names & names);

// the line about a plan of other weights
extern const char * const llama_skip_other_weights;

// one line for the log: which blocks, how many are kept, what was not loaded; a second one about a plan of other weights
std::string llama_skip_summary(const llama_skip & skip, int32_t n_layer);

// whether the tensor `name` belongs to a block that is left out
bool llama_skip_tensor(const llama_skip & skip, const std::string & name);

// the block that the tensor `name` belongs to, -1: none
int32_t llama_skip_block_of(const std::string & name);

// The sum of a context's tensors as its buffer type allocates them: what is loaded, whatever the load mode.
// With something left out or on disk the first of a context's buffers stands for all of them; otherwise the size of the
// buffer.
size_t llama_skip_buffer_size(const llama_skip & skip, const ggml_context * ctx,
    const std::vector<ggml_backend_buffer_ptr> & bufs, ggml_backend_buffer_t buf);

// the byte ranges of a model's files that stay unread, or on disk
class llama_skip_files {
public:
    using buf_map = std::unordered_map<uint32_t, ggml_backend_buffer_t>;

    std::string path; // of the model's first file

    std::shared_ptr<llama_skip_disk_files> disk; // null without disk blocks; the model keeps it

    size_t n_bytes    = 0; // of the tensors left out
    size_t n_elements = 0;
    int    n_tensors  = 0;

    // The shapes of the tensors left out, without data; the model keeps them. They stand in its layers, so that building
    // the graph of an architecture that needs one after all ends in an error (llama_skip_check_graph) and not in a crash.
    std::shared_ptr<ggml_context> shapes;

    // `skip` gets the sizes
    void init(const llama_model_loader & ml, llama_skip & skip);

    // null where the file has no such tensor
    ggml_tensor * shape_of(const std::string & name) const;

    bool active(uint32_t idx) const { return holes.count(idx) > 0; }

    // upstream's lazily read ranges and ours, sorted
    llama_mmap::ranges lazy_ranges(uint32_t idx, const llama_mmap::ranges & lazy) const;

    // unmaps what is left out and, with `populate`, reads the rest but for disk blocks
    void mapped(uint32_t idx, const llama_file & file, llama_mmap & mapping, bool populate) const;

    // One buffer for each run of the context's tensors that nothing left out or on disk interrupts; false where upstream's
    // single buffer is right.
    bool map_buffers(const llama_model_loader & ml, ggml_context * ctx, uint32_t idx, ggml_backend_dev_t dev,
        std::vector<ggml_backend_buffer_ptr> & bufs, buf_map & map);

    // the buffer to place a tensor in; `buf` for a tensor that map_buffers() did not place
    ggml_backend_buffer_t buffer_of(const ggml_tensor * tensor, ggml_backend_buffer_t buf) const;

    // locks a run up to the end of the tensor at [first, last); false: this file has no holes
    bool lock(llama_mlocks & mlocks, uint32_t idx, void * addr, size_t first, size_t last);

private:
    // [first, last) of each run of tensors left out, and of these and those on disk
    std::map<uint32_t, llama_mmap::ranges> left_out;
    std::map<uint32_t, llama_mmap::ranges> holes;

    std::unordered_map<const ggml_tensor *, ggml_backend_buffer_t> buffers;

    std::map<std::pair<uint32_t, size_t>, size_t> locks; // by file and start of the run, index in mlocks

    // start of the run of kept bytes around offs
    size_t run_start(uint32_t idx, size_t offs) const;
};
