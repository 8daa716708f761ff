#include "load/files.h"

#include "disk/files.h"
#include "disk/pages.h"

#include "llama-impl.h"
#include "llama-model-loader.h"

#include <algorithm>
#include <stdexcept>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

size_t llama_skip_buffer_size(const llama_skip & skip, const ggml_context * ctx,
    const std::vector<ggml_backend_buffer_ptr> & bufs, ggml_backend_buffer_t buf) {
    if (!skip.any() && !skip.disk.any()) {
        return ggml_backend_buffer_get_size(buf);
    }
    if (buf != bufs.front().get()) {
        return 0;
    }
    const ggml_backend_buffer_type_t buft = ggml_backend_buffer_get_type(buf);

    const size_t alignment = ggml_backend_buft_get_alignment(buft);

    size_t size = 0;
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t != nullptr; t = ggml_get_next_tensor(ctx, t)) {
        size += GGML_PAD(ggml_backend_buft_get_alloc_size(buft, t), alignment);
    }
    return size;
}

//
// llama_skip_files
//

void llama_skip_files::init(const llama_model_loader & ml, llama_skip & skip) {
    struct entry {
        size_t first;
        size_t last;
        bool   out;
        bool   hole;
    };

    std::map<uint32_t, std::vector<entry>> files;
    for (const auto & [name, w] : ml.weights_map) {
        const bool    out     = llama_skip_matrix(skip, name, ggml_n_dims(w.tensor));
        const int32_t il      = llama_skip_block_of(name);
        const bool    on_disk = !out && il >= 0 && skip.disk.blocks[il];
        const size_t  size    = ggml_nbytes(w.tensor);
        files[w.idx].push_back({ w.offs, w.offs + size, out, out || on_disk });
        if (out) {
            n_bytes += size;
            n_elements += ggml_nelements(w.tensor);
            n_tensors += 1;
        }
        skip.disk.n_bytes += on_disk ? size : 0;
    }
    skip.n_bytes = n_bytes;

    const ggml_init_params params = { n_tensors * ggml_tensor_overhead(), nullptr, /*no_alloc*/ true };
    shapes.reset(ggml_init(params), ggml_free);
    for (const auto & [name, w] : ml.weights_map) {
        if (llama_skip_matrix(skip, name, ggml_n_dims(w.tensor))) {
            ggml_set_name(ggml_dup_tensor(shapes.get(), w.tensor), name.c_str());
        }
    }
    const auto add_runs = [](const std::vector<entry> & entries, bool entry::*in, ranges & runs) {
        bool open = false;
        for (const auto & e : entries) {
            if (e.*in && open) {
                runs.back().second = e.last;
            } else if (e.*in) {
                runs.emplace_back(e.first, e.last);
            }
            open = e.*in;
        }
    };
    for (auto & [idx, entries] : files) {
        std::sort(entries.begin(), entries.end(), [](const entry & a, const entry & b) { return a.first < b.first; });
        add_runs(entries, &entry::out, left_out[idx]);
        add_runs(entries, &entry::hole, holes[idx]);
        if (holes[idx].empty()) {
            holes.erase(idx);
        }
    }
    if (skip.disk.any()) {
        disk = std::make_shared<llama_skip_disk_files>(ml, skip);
    }
}

ggml_tensor * llama_skip_files::shape_of(const std::string & name) const {
    return shapes ? ggml_get_tensor(shapes.get(), name.c_str()) : nullptr;
}

llama_skip_files::ranges llama_skip_files::lazy_ranges(uint32_t idx, const ranges & lazy) const {
    ranges     res = lazy;
    const auto it  = left_out.find(idx);
    if (it != left_out.end()) {
        res.insert(res.end(), it->second.begin(), it->second.end());
        std::sort(res.begin(), res.end());
    }
    return res;
}

#if defined(__unix__) || defined(__APPLE__)
// Nothing can be resident there any more. The addresses stay ours: upstream unmaps them again when all is loaded.
static void punch_hole(char * addr, size_t first, size_t last) {
    first = llama_skip_page_end(first);
    last  = llama_skip_page_start(last);
    if (first < last &&
        mmap(addr + first, last - first, PROT_NONE, MAP_FIXED | MAP_PRIVATE | MAP_ANON, -1, 0) == MAP_FAILED) {
        LLAMA_LOG_WARN("skip: %zu bytes stay mapped\n", last - first);
    }
}
#else
static void punch_hole(char *, size_t, size_t) {}
#endif

void llama_skip_files::mapped(uint32_t idx, const llama_file & file, llama_mmap & mapping, bool populate) const {
    if (!active(idx)) {
        return;
    }
    for (const auto & [first, last] : left_out.at(idx)) {
        punch_hole((char *) mapping.addr(), first, last);
    }
    if (disk) {
        // before anything is read: of one mapping, a fault brings in the neighbours too
        disk->mapped(idx, file, (char *) mapping.addr());
    }
    size_t kept = 0;
    for (const auto & [first, last] : holes.at(idx)) {
        if (populate) {
            llama_skip_populate((char *) mapping.addr(), kept, first);
        }
        kept = last;
    }
    if (populate) {
        llama_skip_populate((char *) mapping.addr(), kept, mapping.size());
    }
}

size_t llama_skip_files::run_start(uint32_t idx, size_t offs) const {
    size_t start = 0;
    for (const auto & [first, last] : holes.at(idx)) {
        if (first > offs) {
            break;
        }
        start = last;
    }
    return start;
}

bool llama_skip_files::map_buffers(const llama_model_loader & ml, ggml_context * ctx, uint32_t idx,
    ggml_backend_dev_t dev, std::vector<ggml_backend_buffer_ptr> & bufs, buf_map & map) {
    if (!active(idx)) {
        return false;
    }

    struct run {
        size_t                     first;
        size_t                     last;
        std::vector<ggml_tensor *> tensors;
    };

    std::map<size_t, run> runs;
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t != nullptr; t = ggml_get_next_tensor(ctx, t)) {
        const auto * w = ml.get_weight(ggml_get_name(t));
        if (!w || w->idx != idx) {
            continue;
        }
        auto & r = runs.emplace(run_start(idx, w->offs), run{ w->offs, 0, {} }).first->second;
        r.first  = std::min(r.first, w->offs);
        r.last   = std::max(r.last, w->offs + ggml_nbytes(t));
        r.tensors.push_back(t);
    }

    char * addr = (char *) ml.mappings.at(idx)->addr();
    for (auto & [_, r] : runs) {
        ggml_backend_buffer_t buf =
            ggml_backend_dev_buffer_from_host_ptr(dev, addr + r.first, r.last - r.first, ggml_get_max_tensor_size(ctx));
        if (buf == nullptr) {
            throw std::runtime_error(format("unable to map %zu bytes of the model file", r.last - r.first));
        }
        bufs.emplace_back(buf);
        map.emplace(idx, buf);
        for (const auto * t : r.tensors) {
            buffers[t] = buf;
        }
    }
    return true;
}

ggml_backend_buffer_t llama_skip_files::buffer_of(const ggml_tensor * tensor, ggml_backend_buffer_t buf) const {
    const auto it = buffers.find(tensor);
    return it == buffers.end() ? buf : it->second;
}

bool llama_skip_files::lock(
    std::vector<std::unique_ptr<llama_mlock>> & mlocks, uint32_t idx, void * addr, size_t first, size_t last) {
    if (!active(idx)) {
        return false;
    }
    const size_t start = llama_skip_page_start(run_start(idx, first));

    const auto key = std::make_pair(idx, start);
    if (locks.count(key) == 0) {
        mlocks.emplace_back(new llama_mlock());
        mlocks.back()->init((char *) addr + start);
        locks[key] = mlocks.size() - 1;
    }
    mlocks.at(locks[key])->grow_to(last - start);
    return true;
}
