#pragma once

// Values of a GGUF file's metadata, checked: gguf.h ends the process where a type is not the expected one.

#include "gguf.h"

#include <cstdint>
#include <string>
#include <vector>

// Each returns false where the file has no such key, and throws std::runtime_error where its type is another one.
bool llama_skip_gguf_int(const gguf_context * ctx, const std::string & key, int64_t & value); // any type of integer
bool llama_skip_gguf_float(const gguf_context * ctx, const std::string & key, float & value);
bool llama_skip_gguf_str(const gguf_context * ctx, const std::string & key, std::string & value);
bool llama_skip_gguf_ints(const gguf_context * ctx, const std::string & key, std::vector<int32_t> & values);
bool llama_skip_gguf_floats(const gguf_context * ctx, const std::string & key, std::vector<float> & values);
bool llama_skip_gguf_strs(const gguf_context * ctx, const std::string & key, std::vector<std::string> & values);
