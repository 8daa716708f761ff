#pragma once

// Pages of mapped files. Ranges are [first, last) from a page-aligned address; where the system has no such call,
// nothing happens and nothing is counted.

#include <cstddef>
#include <cstdint>

// bytes of memory that the machine has, 0: not known
uint64_t llama_skip_physical_memory();

size_t llama_skip_page_start(size_t offs);
size_t llama_skip_page_end(size_t offs); // up to a whole page

// Reads a range ahead, with the pages that it shares; returns when it is there, or has been asked for.
void llama_skip_populate(char * addr, size_t first, size_t last);

// The pages that lie wholly in a range: they will be read in order, and by nothing else.
void llama_skip_advise_in_order(char * addr, size_t first, size_t last);

// hands them back to the system
bool llama_skip_release(char * addr, size_t first, size_t last);

// The same for the page cache, where no other process maps them. The kernel drops whole folios only, and those at the
// ends may hold more than the range: the pages beside it go too, and are read again when they are used. `size` is the
// file's.
void llama_skip_evict(int fd, char * addr, size_t first, size_t last, size_t size);

// bytes of them in this process's memory
size_t llama_skip_resident(const char * addr, size_t first, size_t last);
