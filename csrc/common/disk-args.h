#pragma once

// --disk-layers, --disk-scale, --disk-strict and --disk-idle

#include <functional>

struct common_arg;
struct common_params;

void common_skip_disk_add_args(const std::function<void(common_arg)> & add_opt);

// what the grammar refuses; throws std::invalid_argument
void common_skip_disk_check(const common_params & params);

// turns the flags into overrides
void common_skip_disk_finish(common_params & params);
