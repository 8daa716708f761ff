#pragma once

// Where the tensors of disk blocks lie in a model's files, and their pages.

#include "set/skip.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

struct llama_file;
struct llama_model_loader;

struct llama_skip_disk_files {
    llama_skip_disk_files(const llama_model_loader & ml, const llama_skip & skip);
    ~llama_skip_disk_files();

    llama_skip_disk_files(const llama_skip_disk_files &) = delete;

    // file number idx, which is mapped at addr
    void mapped(uint32_t idx, const llama_file & file, char * addr);

    // why what is mapped is no longer what was loaded; empty where nothing changed
    std::string changed() const;

    // the first `share` of a block
    void populate(int32_t il, double share = 1.0) const;
    void release(int32_t il) const;
    void release_all() const;

    // hands back all pages, of this process and, where no other maps them, of the page cache
    void standby() const;

    size_t n_bytes_mapped() const;
    size_t n_bytes_resident() const;

private:
    // a run of tensors of one block
    struct run {
        uint32_t idx;
        size_t   first;
        size_t   last;
        bool     in_part; // experts, of which a token reads few
    };

    struct file_id {
        std::string path; // empty: not known
        char *      addr = nullptr;
        int         fd   = -1;

        uint64_t device   = 0;
        uint64_t inode    = 0;
        int64_t  size     = 0;
        int64_t  mtime_s  = 0;
        int64_t  mtime_ns = 0;
    };

    std::map<int32_t, std::vector<run>> runs;
    std::map<uint32_t, file_id>         files;

    std::vector<run> all_runs; // of all blocks, with those joined that lie side by side

    const std::vector<run> & mapped_runs() const;
    const std::vector<run> & runs_of(int32_t il) const;

    static std::vector<run> joined(std::vector<run> tensors, size_t alignment);
};
