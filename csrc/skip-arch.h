#pragma once

#include "llama-arch.h"

// why blocks of this architecture cannot be left out, null where they can
const char * llama_skip_arch_refusal(llm_arch arch);

// whether build_inp_embd() hands block 0 its input as it is, so that a gap at block 0 can have a bypass
bool llama_skip_arch_plain_embd(llm_arch arch);
