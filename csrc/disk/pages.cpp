#include "disk/pages.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

static size_t page_size() {
    static const size_t size = sysconf(_SC_PAGESIZE);
    return size;
}
#else
static size_t page_size() {
    return 1;
}
#endif

#if defined(__linux__) && !defined(MADV_POPULATE_READ)
#define MADV_POPULATE_READ 22 // Linux 5.14
#endif
#if defined(__linux__) && !defined(MADV_PAGEOUT)
#define MADV_PAGEOUT 21 // Linux 5.4
#endif

size_t llama_skip_page_start(size_t offs) {
    return offs / page_size() * page_size();
}

size_t llama_skip_page_end(size_t offs) {
    return llama_skip_page_start(offs + page_size() - 1);
}

#if defined(__unix__) || defined(__APPLE__)
uint64_t llama_skip_physical_memory() {
    const long n_pages = sysconf(_SC_PHYS_PAGES);
    return n_pages > 0 ? uint64_t(n_pages) * page_size() : 0;
}
#else
uint64_t llama_skip_physical_memory() {
    return 0;
}
#endif

#if defined(__linux__)
void llama_skip_populate(char * addr, size_t first, size_t last) {
    // One call of MADV_WILLNEED reads no more than the device's readahead window, whose default is 128 KiB, and does
    // not wait for it: some of them keep the device busy while MADV_POPULATE_READ maps what has arrived.
    constexpr size_t window = 128 * 1024;
    constexpr size_t ahead  = 4 * 1024 * 1024;
    constexpr size_t piece  = 1024 * 1024;

    size_t asked = llama_skip_page_start(first);
    for (size_t pos = asked; pos < last; pos += piece) {
        for (; asked < std::min(pos + ahead, last); asked += window) {
            madvise(addr + asked, std::min(window, last - asked), MADV_WILLNEED);
        }
        madvise(addr + pos, std::min(piece, last - pos), MADV_POPULATE_READ); // before Linux 5.14 the rest has to do
    }
}
#else
void llama_skip_populate(char *, size_t, size_t) {} // the mapping's own advice has to do
#endif

#if defined(__unix__) || defined(__APPLE__)
void llama_skip_advise_in_order(char * addr, size_t first, size_t last) {
    // upstream says RANDOM of what it reads lazily, up to whole pages
    posix_madvise(addr + llama_skip_page_start(first), llama_skip_page_end(last) - llama_skip_page_start(first),
        POSIX_MADV_NORMAL);
    first = llama_skip_page_end(first);
    last  = llama_skip_page_start(last);
    if (first < last) {
        posix_madvise(addr + first, last - first, POSIX_MADV_SEQUENTIAL);
    }
}

bool llama_skip_release(char * addr, size_t first, size_t last) {
    first = llama_skip_page_end(first);
    last  = llama_skip_page_start(last);
    return first >= last || madvise(addr + first, last - first, MADV_DONTNEED) == 0;
}
#else
void llama_skip_advise_in_order(char *, size_t, size_t) {}

bool llama_skip_release(char *, size_t, size_t) {
    return false;
}
#endif

#if defined(__linux__)
void llama_skip_evict(int fd, char * addr, size_t first, size_t last, size_t size) {
    first = llama_skip_page_end(first);
    last  = llama_skip_page_start(last);
    if (first >= last) {
        return;
    }
    // reclaiming a page that is still mapped splits its folio
    if (first > 0) {
        madvise(addr + first - page_size(), page_size(), MADV_PAGEOUT);
    }
    if (last < size) {
        madvise(addr + last, page_size(), MADV_PAGEOUT);
    }
    posix_fadvise(fd, first, last - first, POSIX_FADV_DONTNEED);
}
#else
void   llama_skip_evict(int, char *, size_t, size_t, size_t) {}
#endif

#if defined(__linux__)
size_t llama_skip_resident(const char * addr, size_t first, size_t last) {
    first       = llama_skip_page_end(first);
    last        = llama_skip_page_start(last);
    FILE * file = fopen("/proc/self/pagemap", "rb");
    if (file == nullptr) {
        return 0;
    }
    size_t                n = 0;
    std::vector<uint64_t> entries(1024);
    fseeko(file, ((uintptr_t) addr + first) / page_size() * sizeof(uint64_t), SEEK_SET);
    for (size_t left = first < last ? (last - first) / page_size() : 0; left > 0;) {
        const size_t n_read = fread(entries.data(), sizeof(uint64_t), std::min(left, entries.size()), file);
        if (n_read == 0) {
            break;
        }
        n += std::count_if(entries.begin(), entries.begin() + n_read, [](uint64_t e) { return e >> 63; }); // present
        left -= n_read;
    }
    fclose(file);
    return n * page_size();
}
#elif defined(__APPLE__)
size_t llama_skip_resident(const char * addr, size_t first, size_t last) {
    first = llama_skip_page_end(first);
    last  = llama_skip_page_start(last);
    std::vector<char> pages(first < last ? (last - first) / page_size() : 0);
    if (pages.empty() || mincore((void *) (addr + first), last - first, pages.data()) != 0) {
        return 0;
    }
    return page_size() * std::count_if(pages.begin(), pages.end(), [](char p) { return p & 1; });
}
#else
size_t llama_skip_resident(const char *, size_t, size_t) {
    return 0;
}
#endif
