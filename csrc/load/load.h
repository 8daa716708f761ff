#pragma once

// Loading a model without its left-out blocks.

#include "llama.h"

#include <cstddef>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>

class llama_skip_bypasses;
struct ggml_context;
struct llama_model;
struct llama_model_loader;

// what a model keeps of its loader for later
struct llama_skip_kept {
    std::string path;        // of its first file
    size_t      n_bytes = 0; // of all tensors of the file

    std::filesystem::file_time_type written; // when it was loaded
    std::once_flag                  identified;
    std::string                     weights_id;

    std::string    baked; // the blocks that a baked file lacks, in its source's numbering
    std::once_flag warned;

    std::shared_ptr<ggml_context>        shapes; // of the tensors left out
    std::shared_ptr<llama_skip_bypasses> bypasses;
};

// Fills the model's hparams.skip from the loader's overrides and takes the tensors of those blocks out of the loader's
// accounts. Throws std::invalid_argument before anything is read.
void llama_skip_load(llama_model_loader & ml, llama_model & model);

// the blocks that a baked file lacks, empty for any other
std::string llama_skip_baked(const llama_model_loader & ml);

// llama_skip_hash_weights() of a model's file, read when it is first asked for
LLAMA_API std::string llama_skip_weights_id(const llama_model & model);

// Loads the tensors that the bypasses of the model's plan have, once the model has its own.
void llama_skip_load_bypasses(llama_model & model);
