#pragma once

struct ggml_tensor;
struct llm_graph_context;
class llm_graph_result;
struct llm_graph_params;

// what a norm of block il is about to read: the first one of a block may tell its input
void llama_skip_disk_norm(const llm_graph_context & llm, ggml_tensor * cur, int il);

// The stream after block il: of a disk block with its S, and on the host.
ggml_tensor * llama_skip_disk_out(const llm_graph_context & llm, ggml_tensor * cur, int il);

// puts what reads a tensor of a disk block on the host, where upstream would copy the tensor to a device for a large
// batch
void llama_skip_disk_place(const llm_graph_context & llm);

// throws std::runtime_error when the graph does not scale what it should
void llama_skip_disk_check(const llm_graph_result & res, const llm_graph_params & params);
