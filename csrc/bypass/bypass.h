#pragma once

// Bypasses that have tensors: y = a.x + U(Vz) + b in a gap, where x is the residual stream, and z = x or what a norm makes of
// it. They come from a plan file in GGUF (docs/metadata.md).

#include "set/skip.h"

#include "ggml-cpp.h"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

struct llama_file;
struct llama_model;
struct llm_graph_context;

// of one gap
struct llama_skip_bypass_tensors {
    int32_t     first    = 0; // block of the gap
    int32_t     n_blocks = 0;
    float       norm_eps = -1.0f; // z = x / sqrt(mean(x^2) + norm_eps); below 0: z = x
    std::string hash;             // of all that it computes with; empty before the data is read

    ggml_tensor * a = nullptr; // [n_embd], null: 1
    ggml_tensor * b = nullptr; // [n_embd], null: 0
    ggml_tensor * u = nullptr; // [rank, n_embd], null with v: no U(Vz)
    ggml_tensor * v = nullptr; // [n_embd, rank]

    std::vector<ggml_tensor *> tensors() const; // those there are

    int64_t rank() const { return v ? v->ne[1] : 0; }

    size_t n_bytes() const;
};

// Those of a plan file, in the order of its gaps. llama_skip.bypass points into it.
class llama_skip_bypasses {
public:
    // Opens the file. It and what is not const throw std::runtime_error.
    explicit llama_skip_bypasses(const std::string & path);
    ~llama_skip_bypasses();

    const gguf_context * metadata() const { return meta.get(); }

    // Gives each of `gaps` its tensors, and checks these: names, types, shapes, places in the file.
    void describe(const std::vector<llama_skip_bypass_tensors> & gaps, int64_t n_embd);

    // Reads all data once: refuses what is not finite, and hashes it.
    void read_data();

    // Places the tensors beside the block before their gap, and reads them; with hparams.no_alloc only counts.
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
    std::vector<uint8_t> data_of(const ggml_tensor * tensor);

    struct file_closer {
        void operator()(FILE * file) const { fclose(file); }
    };

    std::string                        path;
    std::unique_ptr<FILE, file_closer> stream;
    std::unique_ptr<llama_file>        file;
    gguf_context_ptr                   meta;
    ggml_context_ptr                   shapes; // the file's tensors

    std::vector<llama_skip_bypass_tensors> gaps;
    std::vector<part>                      parts;

    ggml_context * ctx_for(ggml_backend_buffer_type_t buft);
};

// "linear (rank 64) at 13, affine at 25, 0.42 MiB"; empty when there is none
std::string llama_skip_bypass_str(const llama_skip & skip);

// "13:0123456789abcdef,25:..."; empty when there is none
std::string llama_skip_bypass_hashes(const llama_skip & skip);

// y for x, as nodes of the graph behind block il
ggml_tensor * llama_skip_apply_bypass(
    const llm_graph_context & llm, ggml_tensor * x, const llama_skip_bypass_tensors & bypass, int il);
