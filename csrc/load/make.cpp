#include "load/make.h"

#include "bypass/bypass.h"
#include "load/make-disk.h"
#include "set/arch.h"
#include "set/spec.h"

#include "llama-hparams.h"

#include <stdexcept>

static_assert(LLAMA_SKIP_MAX_LAYERS == LLAMA_MAX_LAYERS, "a mask has one bit for each layer");

// a bypass with tensors belongs to the exact gap
static void set_bypass(llama_skip & skip, const llama_skip_bypass_tensors & bypass, const llama_skip_names & names) {
    const int32_t     il    = bypass.first;
    const std::string where = names.layers + ": the bypass of the gap at block " + std::to_string(il);
    if (il < LLAMA_SKIP_MAX_LAYERS && bypass.n_blocks == 0 && skip.gap_size(il) != 0) {
        throw std::invalid_argument(names.layers + ": the bypass at block " + std::to_string(il) +
                                    " is for a half of the block before, which runs whole or not at all");
    }
    if (il >= LLAMA_SKIP_MAX_LAYERS || skip.gap_size(il) != bypass.n_blocks) {
        throw std::invalid_argument(
            where + " is for " + std::to_string(bypass.n_blocks) +
            " blocks, that is no gap of the blocks left out: " + llama_skip_layers_str(skip.out));
    }
    if (skip.scale[il] != 1.0f) {
        throw std::invalid_argument(where + " and its scale exclude each other");
    }
    skip.bypass[il] = &bypass;
}

static void check_bypass(
    const llama_skip & skip, llm_arch arch, const llama_skip_spec & spec, const llama_skip_names & names) {
    const std::string name = llm_arch_name(arch);
    if (skip.model.n_loop > 1 && !(spec.scale.empty() && spec.bypasses.empty())) {
        throw std::invalid_argument((spec.scale.empty() ? names.layers : names.scale) + ": architecture '" + name +
                                    "' runs its blocks in " + std::to_string(skip.model.n_loop) +
                                    " loops, its gaps can have neither a scale nor a bypass");
    }
    if (!skip.has_bypass(0) || llama_skip_arch_of(arch).plain_embd) {
        return;
    }
    if (skip.scale[0] != 1.0f || skip.bypass[0] != nullptr) {
        throw std::invalid_argument((skip.bypass[0] ? names.layers : names.scale) +
                                    ": the gap at block 0 can have neither a scale nor a bypass in architecture '" +
                                    name + "': its embeddings are changed before block 0");
    }
    throw std::invalid_argument(names.layers + ": blocks 0-" + std::to_string(skip.gap_end(0) - 1) +
                                " of architecture '" + name +
                                "' cannot all be left out: they scale the residual "
                                "stream, and there is no place for that before the first kept block");
}

static void check_halves(const llama_skip & skip, int32_t n_layer, const std::string & name) {
    const auto check = [&](const llama_skip_mask & blocks, int half, const char * reason) {
        const llama_skip_mask refused = skip.file_blocks(blocks, n_layer);
        if (refused.any()) {
            throw std::invalid_argument(name + ": " +
                                        llama_skip_layers_str(refused, std::string(":") + llama_skip_half_names[half]) +
                                        " cannot be left out: " + reason);
        }
    };
    for (int half = 0; half < LLAMA_SKIP_N_HALVES; ++half) {
        check(skip.half[half] & ~skip.model.present[half], half, "the model has none there");
    }
    check(skip.half[LLAMA_SKIP_MIXER] & skip.model.stateful, LLAMA_SKIP_MIXER,
        "it keeps more than keys and values, only the whole block can go");
}

llama_skip llama_skip_make(
    const llama_hparams & hparams, llm_arch arch, const llama_skip_spec & spec, const llama_skip_names & names) {
    llama_skip skip = hparams.skip.model_only();
    skip.untested |= spec.untested;
    if (!spec.layers.empty()) {
        const int32_t n_file = hparams.n_layer() / skip.model.n_loop;
        const auto    ranges = llama_skip_parse_layers(names.layers, spec.layers);
        const char *  reason = llama_skip_arch_of(arch).refusal;
        if (!ranges.empty() && reason != nullptr) {
            throw std::invalid_argument(
                names.layers + ": blocks of architecture '" + llm_arch_name(arch) + "' cannot be left out: " + reason);
        }
        llama_skip_resolve_layers(names.layers, ranges, n_file, skip);
        skip.out = llama_skip_every_loop(skip.out, n_file, skip.model.n_loop);
        for (auto & half : skip.half) {
            half = llama_skip_every_loop(half, n_file, skip.model.n_loop);
        }
    }
    llama_skip_disk_make(hparams, arch, spec, names, skip);
    if (!spec.scale.empty()) {
        llama_skip_resolve_scale(names.scale, llama_skip_parse_scale(names.scale, spec.scale), skip);
    }
    for (const auto * bypass : spec.bypasses) {
        set_bypass(skip, *bypass, names);
    }
    if (!skip.any()) {
        return skip;
    }
    if (!skip.untested && !llama_skip_arch_of(arch).tested) {
        throw std::invalid_argument(names.layers + ": leaving out blocks of architecture '" + llm_arch_name(arch) +
                                    "' has not been tested; to try, give --skip-untested (or the override " +
                                    LLAMA_SKIP_KEY_UNTESTED "=bool:true)");
    }
    const auto  known  = llama_skip_arch_of(arch);
    std::string reason = known.set_refusal != nullptr ? known.set_refusal(hparams, skip) : "";
    for (int half = 0; half < LLAMA_SKIP_N_HALVES; ++half) {
        if (known.half_refusal[half] != nullptr && skip.half[half].any()) {
            reason = known.half_refusal[half];
        }
    }
    if (!reason.empty()) {
        throw std::invalid_argument(names.layers + ": blocks " + llama_skip_set_str(skip, hparams.n_layer()) +
                                    " of architecture '" + llm_arch_name(arch) + "' cannot be left out: " + reason);
    }
    check_halves(skip, hparams.n_layer(), names.layers);
    check_bypass(skip, arch, spec, names);
    return skip;
}
