#include "load/make-disk.h"

#include "set/arch.h"
#include "set/spec.h"

#include "llama-hparams.h"
#include "llama-impl.h"
#include "llama-mmap.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

static llama_skip_scales parse_scale(const llama_skip_spec & spec, const llama_skip_names & names) {
    return llama_skip_parse_scale(names.disk_scale, spec.disk_scale, "disk block", "block");
}

static float parse_idle(const llama_skip_spec & spec, const llama_skip_names & names) {
    const auto      seconds = llama_skip_parse_scale(names.disk_idle, spec.disk_idle);
    constexpr float most    = 1e9f; // what a clock can add up
    if (seconds.size() != 1 || seconds[0].first >= 0 || seconds[0].second < 0.0f || seconds[0].second > most) {
        throw std::invalid_argument(
            names.disk_idle + ": '" + spec.disk_idle + "' is no number of seconds from 0 to a billion");
    }
    return seconds[0].second;
}

void llama_skip_disk_parse(const llama_skip_spec & spec, const llama_skip_names & names) {
    if (!spec.disk.empty()) {
        llama_skip_parse_blocks(names.disk, spec.disk);
    }
    if (!spec.disk_scale.empty()) {
        parse_scale(spec, names);
    }
    if (!spec.disk_idle.empty()) {
        parse_idle(spec, names);
    }
}

// S of every block, in the file's numbering
static void resolve_scale(
    const llama_skip_spec & spec, const llama_skip_names & names, const llama_skip_mask & blocks, llama_skip & skip) {
    for (const auto & s : parse_scale(spec, names)) {
        if (s.first >= LLAMA_SKIP_MAX_LAYERS || (s.first >= 0 && !blocks[s.first])) {
            throw std::invalid_argument(names.disk_scale + ": block " + std::to_string(s.first) +
                                        " is not on disk, the blocks on disk are " +
                                        (blocks.any() ? llama_skip_layers_str(blocks) : "none"));
        }
        if (blocks.none()) {
            throw std::invalid_argument(names.disk_scale + ": no block is on disk, so there is none to scale");
        }
        for (int32_t il = 0; il < LLAMA_SKIP_MAX_LAYERS; ++il) {
            if (blocks[il] && (s.first < 0 || s.first == il)) {
                skip.disk.scale[il] = s.second;
            }
        }
    }
}

// the S of a block between leaving it out and running it as it is
static bool is_between(float scale) {
    return scale != 0.0f && scale != 1.0f;
}

static void check_blocks(const llama_hparams & hparams, llm_arch arch, const llama_skip_names & names,
    const llama_skip & skip, const llama_skip_mask & blocks) {
    const char * reason = llama_skip_arch_of(arch).refusal;
    if (reason != nullptr) {
        throw std::invalid_argument(
            names.disk + ": blocks of architecture '" + llm_arch_name(arch) + "' cannot be on disk: " + reason);
    }
    if (!llama_mmap::SUPPORTED) {
        throw std::invalid_argument(names.disk + ": this system cannot map files");
    }
    const llama_skip_mask both = blocks & skip.file_blocks(hparams.n_layer());
    if (both.any()) {
        throw std::invalid_argument(
            names.disk + ": blocks " + llama_skip_layers_str(both) + " are left out, they cannot be on disk as well");
    }
    for (int32_t il = 0; il < LLAMA_SKIP_MAX_LAYERS; ++il) {
        if (!blocks[il] || !is_between(skip.disk.scale[il])) {
            continue;
        }
        if (skip.model.n_loop > 1) {
            throw std::invalid_argument(
                format("%s: architecture '%s' runs its blocks in %d loops, they cannot be scaled",
                    names.disk_scale.c_str(), llm_arch_name(arch), skip.model.n_loop));
        }
        if (skip.model.factor[il] != 1.0f) {
            throw std::invalid_argument(format("%s: block %d of architecture '%s' multiplies the residual stream by "
                                               "%s itself, only a scale of 0 or 1 is possible",
                names.disk_scale.c_str(), il, llm_arch_name(arch),
                llama_skip_number_str(skip.model.factor[il]).c_str()));
        }
        if (!skip.untested && !llama_skip_arch_of(arch).tested) {
            throw std::invalid_argument(
                names.disk_scale + ": scaling blocks of architecture '" + llm_arch_name(arch) +
                "' has not been tested; to try, give --skip-untested (or the override " LLAMA_SKIP_KEY_UNTESTED
                "=bool:true)");
        }
    }
}

void llama_skip_disk_make(const llama_hparams & hparams, llm_arch arch, const llama_skip_spec & spec,
    const llama_skip_names & names, llama_skip & skip) {
    const int32_t   n_file = hparams.n_layer() / skip.model.n_loop;
    llama_skip_mask blocks;
    if (!spec.disk.empty()) {
        blocks = llama_skip_named_layers(names.disk, llama_skip_parse_blocks(names.disk, spec.disk), n_file);
    }
    if (!spec.disk_scale.empty()) {
        resolve_scale(spec, names, blocks, skip);
    }
    if (!spec.disk_idle.empty()) {
        skip.disk.idle = parse_idle(spec, names);
    }
    skip.disk.strict |= spec.disk_strict;
    if (spec.disk.empty() && (!spec.disk_idle.empty() || spec.disk_strict)) {
        throw std::invalid_argument(names.disk + ": no block is on disk, so there is no memory to hand back");
    }
    if (blocks.none()) {
        return;
    }
    check_blocks(hparams, arch, names, skip, blocks);

    llama_skip_mask out;
    for (int32_t il = 0; il < n_file; ++il) {
        out.set(il, blocks[il] && skip.disk.scale[il] == 0.0f);
        for (int32_t loop = 1; loop < skip.model.n_loop; ++loop) {
            skip.disk.scale[loop * n_file + il] = skip.disk.scale[il];
        }
    }
    skip.disk.blocks = llama_skip_every_loop(blocks & ~out, n_file, skip.model.n_loop);
    skip.out |= llama_skip_every_loop(out, n_file, skip.model.n_loop);
    for (auto & half : skip.half) {
        half &= ~skip.out;
    }
    if (skip.n_kept(0, hparams.n_layer()) == 0) {
        throw std::invalid_argument(names.disk_scale + ": with a scale of 0 every block is left out, one has to stay");
    }
}

std::string llama_skip_disk_summary(const llama_skip & skip, int32_t n_layer) {
    if (!skip.disk.any()) {
        return "";
    }
    const std::string scale = llama_skip_disk_scale_str(skip);
    return format("disk: blocks %s stay in the file%s%s, %.2f MiB mapped, run on the host%s",
        llama_skip_layers_str(skip.file_blocks(skip.disk.blocks, n_layer)).c_str(), scale.empty() ? "" : ", scale ",
        scale.c_str(), skip.disk.n_bytes / 1024.0 / 1024.0,
        skip.disk.strict ? ", their pages handed back after each use" : "");
}
