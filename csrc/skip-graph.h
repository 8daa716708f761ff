#pragma once

#include "skip.h"

struct ggml_tensor;
struct llm_graph_context;
class llm_graph_result;
struct llm_graph_params;

// The stream after block il (-1: after the embeddings), with the bypass of the gap that begins behind it.
ggml_tensor * llama_skip_bypass(const llm_graph_context & llm, ggml_tensor * cur, int il);

// With something left out: makes every input part of the graph, so that set_input() finds those allocated that only
// left-out blocks read.
void llama_skip_expand_inputs(const llm_graph_context & llm);

// Throws std::runtime_error when the graph does not leave out what it should; the second logs and returns false.
void llama_skip_check_graph(const llm_graph_result & res, const llm_graph_params & params);
bool llama_skip_graph_ok(const llm_graph_result & res, const llm_graph_params & params);
