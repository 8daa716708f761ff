#pragma once

// The tensors of bypasses in memory: on the device of the block before the gap, whose result they read.

#include "bypass/bypass.h"

#include "ggml-cpp.h"

#include <functional>
#include <memory>
#include <vector>

class llama_skip_bypass_file;
struct llama_model;

// Those of a plan file, in the order of its gaps. llama_skip.bypass points into it.
class llama_skip_bypasses {
public:
    // `gaps` as the file described them
    llama_skip_bypasses(std::unique_ptr<llama_skip_bypass_file> file, std::vector<llama_skip_bypass_tensors> gaps);
    ~llama_skip_bypasses();

    // Reads all data once: refuses what is not finite, and hashes it. Throws std::runtime_error.
    void read_data();

    // Places the tensors and reads them, with hparams.no_alloc only counts; closes the file. Throws std::runtime_error.
    void load(const llama_model & model);

    const std::vector<llama_skip_bypass_tensors> & all() const { return gaps; }

    size_t  n_bytes() const;
    int64_t n_elements() const;

    // in memory of one type
    struct part {
        ggml_backend_buffer_type_t buft;
        ggml_context_ptr           ctx;
        ggml_backend_buffer_ptr    buf;
        size_t                     size; // with no_alloc what would have been allocated
    };

    const std::vector<part> & loaded() const { return parts; }

private:
    std::unique_ptr<llama_skip_bypass_file> file;
    std::vector<llama_skip_bypass_tensors>  gaps;
    std::vector<part>                       parts;

    ggml_context * ctx_for(ggml_backend_buffer_type_t buft);
};

// the bytes of what the bypasses hold in memory of each type; null for none
void llama_skip_bypass_sizes(
    const llama_skip_bypasses * bypasses, const std::function<void(ggml_backend_buffer_type_t, size_t)> & add);
