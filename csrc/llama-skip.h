#pragma once

// Blocks left out: additions to llama.h. What to leave out at load travels in llama_model_params.kv_overrides
// ("skip.layers" or "skip.plan", "skip.scale", "skip.untested"; "skip.disk", "skip.disk_scale", "skip.disk_strict",
// "skip.disk_idle"), so no public struct of llama.h changes.

#include "llama.h"

#ifdef __cplusplus
extern "C" {
#endif

// e.g. "0.1.0", and the upstream commit it is built on
LLAMA_API const char * llama_skip_version(void);
LLAMA_API const char * llama_skip_upstream(void);

// the reason of the last function of this header that failed in this thread
LLAMA_API const char * llama_skip_error(void);

// Checks a set or plan and its scales against a model's hyperparameters: no tensor is loaded. Both may be null or
// empty; the names stand at the start of a message. Returns false and sets llama_skip_error() when they are refused; a
// file that cannot be read is not, loading it gives the reason.
LLAMA_API bool llama_skip_check(const char * path_model, const char * layers, const char * scale,
    const char * name_layers, const char * name_scale);

// What the grammar refuses of the values of --disk-layers, --disk-scale and --disk-idle; each may be empty.
LLAMA_API bool llama_skip_check_disk(const char * layers, const char * scale, const char * idle);

// llama_skip_check() for overrides.
LLAMA_API bool llama_skip_check_overrides(const char * path_model, const struct llama_model_kv_override * overrides);

// The same, with the names of the flags that the overrides stand for.
LLAMA_API bool llama_skip_check_flags(const char * path_model, const struct llama_model_kv_override * overrides,
    const char * name_layers, const char * name_scale);

// The line that loading a file with these overrides would log, empty when nothing is left out; valid as those below.
LLAMA_API const char * llama_skip_describe(const char * path_model, const struct llama_model_kv_override * overrides);

// Whether block il was left out when the model was loaded.
LLAMA_API bool     llama_model_is_skipped(const struct llama_model * model, int32_t il);
LLAMA_API int32_t  llama_model_n_skipped(const struct llama_model * model);
LLAMA_API uint64_t llama_model_skipped_size(const struct llama_model * model); // bytes of weights not loaded

// The set, and its scales that are not 1, in the form of the flags, what its bypasses with tensors are ("linear (rank
// 64) at 13, 0.42 MiB"), and the line that loading logs about them; each valid until the thread's next call of any of
// them.
LLAMA_API const char * llama_model_skip_layers(const struct llama_model * model);
LLAMA_API const char * llama_model_skip_scale(const struct llama_model * model);
LLAMA_API const char * llama_model_skip_bypass(const struct llama_model * model);
LLAMA_API const char * llama_model_skip_summary(const struct llama_model * model);

// File index of the kept block number `ordinal` (0-based) under a model's overrides; the file matters for a plan only.
LLAMA_API int32_t llama_skip_layer_index(
    const char * path_model, const struct llama_model_kv_override * overrides, int32_t ordinal);

// The run-time mask of a context: leaves out the blocks `layers` names in addition to the model's set ("none" or null:
// only those), from the next llama_decode() on. A gap that the mask changes is the identity, any other keeps its scale
// or bypass; `scale`, which may be null, replaces what stands in the gaps that it names. A plan ("auto:...", "@NAME",
// "@PATH") brings its own scales and bypasses, whose tensors the context holds until the next mask; it is looked up in
// the file that the model was loaded from. Returns false, sets llama_skip_error() and keeps the old mask when the set,
// the plan or the architecture does not allow it. llama_decode() fails with -1 while a block would run over tokens that
// were decoded without it.
LLAMA_API bool llama_skip_set_mask(struct llama_context * ctx, const char * layers, const char * scale);

// What a context leaves out, and what stands in its gaps, as one line: where it differs, so may what is computed, and
// saved states are refused. Empty when nothing is left out; valid as those above.
LLAMA_API const char * llama_skip_state_tag(const struct llama_context * ctx);

// What a context leaves out at present, the model's set among it, in the form of the flag; valid as those above.
LLAMA_API const char * llama_skip_mask_layers(const struct llama_context * ctx);
LLAMA_API bool         llama_skip_is_masked(const struct llama_context * ctx, int32_t il);

// Disk blocks: mapped from the file, run on the host, their output x + S*(f(x) - x).
LLAMA_API bool    llama_model_is_on_disk(const struct llama_model * model, int32_t il);
LLAMA_API int32_t llama_model_n_on_disk(const struct llama_model * model);

// The blocks, and those S that are not 1, in the form of the flags; valid as those above.
LLAMA_API const char * llama_model_disk_layers(const struct llama_model * model);
LLAMA_API const char * llama_model_disk_scale(const struct llama_model * model);

// Hands the mapped pages of disk blocks back to the system, those in the page cache too where nothing else maps them.
// May be called at any time; the next llama_decode() reads them again.
LLAMA_API void llama_skip_standby(const struct llama_model * model);

// bytes of disk blocks that are mapped, and those of them in this process's memory (0 where the system does not tell)
LLAMA_API uint64_t llama_skip_disk_mapped(const struct llama_model * model);
LLAMA_API uint64_t llama_skip_disk_resident(const struct llama_model * model);

// Of a model with disk blocks: where the nodes of block il ran in the last graph of the context. False when that is not
// known.
LLAMA_API bool llama_skip_disk_nodes(
    const struct llama_context * ctx, int32_t il, int32_t * n_host, int32_t * n_device);

#ifdef __cplusplus
}
#endif
