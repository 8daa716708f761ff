#pragma once

// Disk blocks in a context, and what a model tells of them.

#include "llama.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

class llama_skip_disk_pager;
struct llama_skip;
struct llama_skip_disk_files;

// null without disk blocks
std::shared_ptr<llama_skip_disk_pager> llama_skip_disk_start(
    std::shared_ptr<llama_skip_disk_files> files, const llama_skip & skip);

// Tells the bytes of a model's disk blocks that are mapped, and that are in memory; none once the model is freed.
LLAMA_API std::function<std::pair<uint64_t, uint64_t>()> llama_skip_disk_memory(const llama_model * model);
