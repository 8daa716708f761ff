#pragma once

// A baked file, whose blocks have other numbers than those of the model it is from: what was made for that one.

#include <string>
#include <unordered_map>
#include <vector>

struct llama_model;
struct llama_model_loader;

// Warns once of what is laid over the blocks of a baked model: nothing tells whose blocks it was made for.
void llama_skip_warn_baked(const llama_model & model);

// whether an adapter's tensor is that of a block left out
bool llama_skip_adapter_tensor(const llama_model & model, const std::string & name);

// Throws std::runtime_error where an importance matrix has tensors that a baked file lacks.
void llama_skip_check_imatrix(
    const llama_model_loader & ml, const std::unordered_map<std::string, std::vector<float>> & imatrix);
