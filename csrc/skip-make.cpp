#include "skip-make.h"

#include "skip-arch.h"
#include "skip-spec.h"

#include "llama-hparams.h"

#include <stdexcept>

static_assert(LLAMA_SKIP_MAX_LAYERS == LLAMA_MAX_LAYERS, "a mask has one bit for each layer");

llama_skip llama_skip_make(
    const llama_hparams & hparams, llm_arch arch, const llama_skip_spec & spec, const llama_skip_names & names) {
    llama_skip skip;
    if (!spec.layers.empty()) {
        const auto ranges = llama_skip_parse_layers(names.layers, spec.layers);
        skip.out          = llama_skip_resolve_layers(names.layers, ranges, hparams.n_layer());
    }
    if (!spec.scale.empty()) {
        llama_skip_resolve_scale(names.scale, llama_skip_parse_scale(names.scale, spec.scale), skip);
    }
    if (!skip.any()) {
        return skip;
    }
    if (const char * reason = llama_skip_arch_refusal(arch)) {
        throw std::invalid_argument(
            names.layers + ": blocks of architecture '" + llm_arch_name(arch) + "' cannot be left out: " + reason);
    }
    if (skip.out[0] && skip.scale[0] != 1.0f && !llama_skip_arch_plain_embd(arch)) {
        throw std::invalid_argument(names.scale + ": the gap at block 0 cannot be scaled in architecture '" +
                                    llm_arch_name(arch) + "': its embeddings are changed before block 0");
    }
    return skip;
}
