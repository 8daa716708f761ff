#include "disk/files.h"

#include "disk/pages.h"

#include "llama-impl.h"
#include "llama-model-loader.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <climits>
#endif

// those joined between which nothing but padding lies
std::vector<llama_skip_disk_files::run> llama_skip_disk_files::joined(std::vector<run> tensors, size_t alignment) {
    std::sort(tensors.begin(), tensors.end(),
        [](const run & a, const run & b) { return std::make_pair(a.idx, a.first) < std::make_pair(b.idx, b.first); });
    std::vector<run> res;
    for (const auto & t : tensors) {
        const bool joins = !res.empty() && res.back().idx == t.idx && res.back().in_part == t.in_part &&
                           t.first - res.back().last < alignment;
        if (joins) {
            res.back().last = t.last;
        } else {
            res.push_back(t);
        }
    }
    return res;
}

llama_skip_disk_files::llama_skip_disk_files(const llama_model_loader & ml, const llama_skip & skip) {
    std::map<int32_t, std::vector<run>> tensors;
    for (const auto & [name, w] : ml.weights_map) {
        const int32_t il = llama_skip_block_of(name);
        if (il >= 0 && skip.disk.blocks[il] && !skip.out[il]) {
            tensors[il].push_back({ w.idx, w.offs, w.offs + ggml_nbytes(w.tensor), w.tensor->ne[2] > 1 });
        }
    }
    const size_t     alignment = gguf_get_alignment(ml.metadata);
    std::vector<run> all;
    for (auto & [il, block] : tensors) {
        all.insert(all.end(), block.begin(), block.end());
        runs[il] = joined(std::move(block), alignment);
    }
    for (auto & r : all) {
        r.in_part = false;
    }
    all_runs = joined(std::move(all), alignment);
}

#if defined(__unix__) || defined(__APPLE__)
#if defined(__APPLE__)
#define ST_MTIM st_mtimespec
#else
#define ST_MTIM st_mtim
#endif

// the path under which an open file was found
static std::string path_of(int fd) {
    char path[PATH_MAX] = {};
#if defined(__APPLE__)
    return fcntl(fd, F_GETPATH, path) == 0 ? path : "";
#else
    const std::string link = "/proc/self/fd/" + std::to_string(fd);
    return readlink(link.c_str(), path, sizeof(path) - 1) > 0 && path[0] == '/' ? path : "";
#endif
}

llama_skip_disk_files::~llama_skip_disk_files() {
    for (const auto & [_, f] : files) {
        if (f.fd >= 0) {
            close(f.fd);
        }
    }
}

void llama_skip_disk_files::mapped(uint32_t idx, const llama_file & file, char * addr) {
    const bool has_blocks =
        std::any_of(all_runs.begin(), all_runs.end(), [idx](const run & r) { return r.idx == idx; });
    if (!has_blocks) {
        return;
    }
    file_id & id = files[idx]; // its descriptor is closed whatever happens
    id.addr      = addr;
    id.fd        = fcntl(file.file_id(), F_DUPFD_CLOEXEC, 0);

    struct stat st;
    if (id.fd < 0 || fstat(id.fd, &st) != 0) {
        throw std::runtime_error(format("the model file cannot be watched: %s", strerror(errno)));
    }
    id.path = path_of(id.fd);

    struct stat named;
    if (stat(id.path.c_str(), &named) != 0 || named.st_dev != st.st_dev || named.st_ino != st.st_ino) {
        id.path.clear(); // it has no name any more
    }
    id.device   = st.st_dev;
    id.inode    = st.st_ino;
    id.size     = st.st_size;
    id.mtime_s  = st.ST_MTIM.tv_sec;
    id.mtime_ns = st.ST_MTIM.tv_nsec;
    for (const auto & r : all_runs) {
        if (r.idx == idx) {
            llama_skip_advise_in_order(addr, r.first, r.last);
        }
    }
}

std::string llama_skip_disk_files::changed() const {
    for (const auto & [_, f] : files) {
        struct stat  st;
        const bool   there = (f.path.empty() ? fstat(f.fd, &st) : stat(f.path.c_str(), &st)) == 0;
        const char * what  = !there                                                               ? "was removed"
                             : st.st_dev != (dev_t) f.device || st.st_ino != f.inode              ? "was replaced"
                             : st.st_size != f.size                                               ? "changed its size"
                             : st.ST_MTIM.tv_sec != f.mtime_s || st.ST_MTIM.tv_nsec != f.mtime_ns ? "was written to"
                                                                                                  : nullptr;
        if (what) {
            return format(
                "the file %s of disk blocks %s after it was loaded: load the model again", f.path.c_str(), what);
        }
    }
    return "";
}
#else
llama_skip_disk_files::~llama_skip_disk_files() = default;

void llama_skip_disk_files::mapped(uint32_t idx, const llama_file &, char * addr) {
    files[idx].addr = addr;
}

std::string llama_skip_disk_files::changed() const {
    return ""; // not noticed on Windows, which refuses to remove or shorten a mapped file, not to write to it
}
#endif

const std::vector<llama_skip_disk_files::run> & llama_skip_disk_files::runs_of(int32_t il) const {
    static const std::vector<run> none;

    const auto found = runs.find(il);
    return found == runs.end() ? none : found->second;
}

void llama_skip_disk_files::populate(int32_t il, double share) const {
    for (const auto & r : runs_of(il)) {
        if (!r.in_part) {
            llama_skip_populate(files.at(r.idx).addr, r.first, r.first + size_t(share * (r.last - r.first)));
        }
    }
}

void llama_skip_disk_files::release(int32_t il) const {
    for (const auto & r : runs_of(il)) {
        llama_skip_release(files.at(r.idx).addr, r.first, r.last);
    }
}

void llama_skip_disk_files::release_all() const {
    for (const auto & r : mapped_runs()) {
        llama_skip_release(files.at(r.idx).addr, r.first, r.last);
    }
}

void llama_skip_disk_files::standby() const {
    release_all();
    for (const auto & r : mapped_runs()) {
        const file_id & f = files.at(r.idx);
        llama_skip_evict(f.fd, f.addr, r.first, r.last, f.size);
    }
}

size_t llama_skip_disk_files::n_bytes_mapped() const {
    size_t n = 0;
    for (const auto & r : mapped_runs()) {
        n += r.last - r.first;
    }
    return n;
}

size_t llama_skip_disk_files::n_bytes_resident() const {
    size_t n = 0;
    for (const auto & r : mapped_runs()) {
        n += llama_skip_resident(files.at(r.idx).addr, r.first, r.last);
    }
    return n;
}

// none in a dry run
const std::vector<llama_skip_disk_files::run> & llama_skip_disk_files::mapped_runs() const {
    static const std::vector<run> none;
    return files.empty() ? none : all_runs;
}
