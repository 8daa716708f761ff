#pragma once

#include "set/skip.h"

#include "llama-arch.h"

#include <string>

struct llama_hparams;

// whether the test suite compares this architecture with blocks left out; docs/architectures.md has the same list
bool llama_skip_arch_tested(llm_arch arch);

// why blocks of this architecture cannot be left out, null where they can
const char * llama_skip_arch_refusal(llm_arch arch);

// why this set cannot, empty where it can
std::string llama_skip_block_refusal(const llama_hparams & hparams, llm_arch arch, const llama_skip & skip);

// whether image features are added to the stream at block il (deepstack)
bool llama_skip_injects(const llama_hparams & hparams, llm_arch arch, int32_t il);

// whether build_inp_embd() hands block 0 its input as it is, so that a gap at block 0 can have a bypass
bool llama_skip_arch_plain_embd(llm_arch arch);
