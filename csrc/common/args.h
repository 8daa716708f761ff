#pragma once

// --skip-layers, --skip-scale, --skip-untested, --skip-layers-draft and the flags of disk blocks in the programs that
// parse their arguments with common/arg.cpp.

#include <functional>

struct common_arg;
struct common_params;
struct common_params_speculative_draft;
struct llama_model;

void common_skip_add_args(const std::function<void(common_arg)> & add_opt);

// Turns the flags into overrides and lets -ncmoe and -ncffn count kept blocks; once, when everything is parsed and
// before the overrides are terminated. Throws std::invalid_argument.
void common_skip_finish(common_params & params);

// The last check before a model is loaded, for a path that was not known when the arguments were parsed.
bool common_skip_check(const common_params & params);

// The line about the set, where the log's threshold swallowed the one of the loader.
void common_skip_loaded(const llama_model * model);

// The same for a program that only measures.
void common_skip_describe(const common_params & params);

// A draft model gets its own set instead of the target's.
void common_skip_to_draft(common_params & params, const common_params_speculative_draft & draft);

// Marks a pattern as made by -ncmoe or -ncffn, for the kept block number that it names.
void common_skip_note_pattern(const char * pattern);
