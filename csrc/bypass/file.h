#pragma once

// The tensors of a plan file in GGUF: found, checked and read.

#include "bypass/bypass.h"

#include "ggml-cpp.h"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

struct llama_file;

// All functions throw std::runtime_error.
class llama_skip_bypass_file {
public:
    explicit llama_skip_bypass_file(const std::string & path);
    ~llama_skip_bypass_file();

    const gguf_context * metadata() const { return meta.get(); }

    // Gives each of `gaps` its tensors, without data, and checks these: names, types, shapes, places in the file.
    void describe(std::vector<llama_skip_bypass_tensors> & gaps, int64_t n_embd) const;

    // the data of the file's tensor of that name
    std::vector<uint8_t> read(const ggml_tensor * tensor);

    // Reads all data of a gap: refuses what is not finite, and hashes it.
    void hash(llama_skip_bypass_tensors & gap);

private:
    struct closer {
        void operator()(FILE * file) const { fclose(file); }
    };

    std::string                   path;
    std::unique_ptr<FILE, closer> stream;
    std::unique_ptr<llama_file>   file;
    gguf_context_ptr              meta;
    ggml_context_ptr              shapes; // the file's tensors
};
