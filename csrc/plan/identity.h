#pragma once

// Which model a file holds, and which file it is: docs/metadata.md defines both hashes.

#include "llama.h"

#include <cstdint>
#include <string>
#include <vector>

struct llama_model_loader;

struct llama_skip_identity {
    std::string architecture;
    std::string name;        // general.name, may be empty
    std::string file_type;   // llama.cpp's name of the quantization
    int32_t     n_layer = 0; // as llama.cpp counts them: without heads that predict further tokens
    int32_t     n_embd  = 0;
    int32_t     n_vocab = 0;
    uint64_t    n_bytes = 0; // of all tensors
    std::string model_id;    // 16 hex digits
    std::string file_id;     // empty where the tensors have no file
};

struct llama_skip_file_tensor {
    std::string name;
    std::string type;
    uint64_t    n_bytes;
    int32_t     il;   // its block, -1 for a tensor of none
    std::string half; // what goes with this half of it, empty: what goes with the block alone
};

// of a loader that has read the header; throws std::runtime_error
llama_skip_identity llama_skip_identify(llama_model_loader & ml);

// The same of a file, the first one of a split model, and its tensors by name; throws std::runtime_error.
LLAMA_API llama_skip_identity llama_skip_identify(
    const std::string & path, std::vector<llama_skip_file_tensor> & tensors);

// A hash of where every tensor of a file begins: what saved states are told apart by. Throws std::runtime_error.
std::string llama_skip_hash_weights(const std::string & path);
