#pragma once

// What the patches call, in the order of patches/README.md. They include this header alone, and so do upstream's
// headers through them: what stands here includes no header of upstream's that the patches change.

// load.patch
#include "set/skip.h"          // llama_hparams::skip, llama_skip_tensor()
#include "set/blocks.h"        // llama_skip_block_of()
#include "set/overrides.h"     // llama_skip_is_override()
#include "bypass/buffers.h"    // llama_skip_bypass_sizes()
#include "disk/context.h"      // llama_skip_disk_start()
#include "load/load.h"         // llama_skip_load(), llama_skip_load_bypasses(), llama_model::skip
#include "load/baked.h"        // llama_skip_adapter_tensor(), llama_skip_check_imatrix()
#include "load/files.h"        // llama_model_loader::skip, llama_skip_buffer_size()
#include "backends/backends.h" // llama_skip_load_backends()

// load.patch, graph.patch and context.patch
#include "graph/graph.h" // llama_skip_build_graph(), _expand_inputs(), _state(), _bypass(), _check_graph(), _graph_ok()

// graph.patch
#include "graph/loop.h" // llm_graph_context::n_layer, llm_graph_result::skip_trace
#include "graph/half.h" // llama_skip_attn(), _ffn(), _product()
#include "graph/cvec.h" // llama_skip_cvec()
#include "disk/graph.h" // llama_skip_disk_norm(), llama_skip_disk_out()

// context.patch
#include "context/history.h" // llama_memory_i::skip
struct llama_skip_set;       // load/resolve.h

// arguments.patch
#include "llama-skip.h"        // llama_skip_layer_index(), llama_model_n_skipped(), llama_model_n_on_disk()
#include "common/args.h"       // common_skip_add_args(), _finish(), _check(), _loaded(), _describe(), _to_draft(), ...
#include "common/companions.h" // common_skip_is_companion()
#include "common/props.h"      // common_skip_props()

// server.patch
#include "tiers/tiers.h" // common_skip_tiers, common_skip_request, common_skip_start(), _end(), ...

// bench.patch
#include "common/bench.h" // common_skip_bench_*(), common_skip_overrides()
