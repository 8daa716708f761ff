#pragma once

// Back-ends that are libraries of their own, in a folder of the package.

#include "llama.h"

#include <filesystem>

// The library or program that an address belongs to, empty where the system does not say.
LLAMA_API std::filesystem::path llama_skip_library_of(const void * address);

// The folder `bin` next to that of this library: where the tools are, whose own search looks there too.
LLAMA_API std::filesystem::path llama_skip_backend_folder();

// Loads the back-ends of that folder, once; where none is loaded then, those that upstream's search finds.
LLAMA_API void llama_skip_load_backends();
