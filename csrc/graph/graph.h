#pragma once

#include "set/skip.h"

#include <memory>

struct ggml_cgraph;
struct ggml_tensor;
struct llama_model;
struct llm_graph_context;
class llm_graph_result;
struct llm_graph_params;

// The stream after block il (-1: after the embeddings), with the bypass of the gap that begins behind it.
ggml_tensor * llama_skip_bypass(const llm_graph_context & llm, ggml_tensor * cur, int il);

// model.build_arch_graph(); where it throws with something left out, the message names the architecture.
std::unique_ptr<llm_graph_context> llama_skip_build_graph(const llama_model & model, const llm_graph_params & params);

// With something left out: makes every input part of the graph, so that set_input() finds those allocated that only
// left-out blocks read, and lets masked blocks move their recurrent states.
void llama_skip_expand_inputs(const llm_graph_context & llm);

// Throws std::runtime_error when the graph does not leave out what it should; the second logs and returns false.
void llama_skip_check_graph(const llm_graph_result & res, const llm_graph_params & params);
bool llama_skip_graph_ok(const llm_graph_result & res, const llm_graph_params & params);

// whether halves that are left out left this node of a graph without a reader
bool llama_skip_is_dead(const llama_skip & skip, ggml_cgraph * gf, const ggml_tensor * node);

// the recurrent state of block il; throws where it has none
ggml_tensor * llama_skip_state(ggml_tensor * state, int il);
