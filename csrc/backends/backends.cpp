#include "backends/backends.h"

#include "ggml-backend.h"

#include <mutex>
#include <system_error>

#ifdef _WIN32
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace fs = std::filesystem;

fs::path llama_skip_library_of(const void * address) {
#ifdef _WIN32
    HMODULE     module = nullptr;
    const DWORD flags  = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    if (!GetModuleHandleExW(flags, (LPCWSTR) address, &module)) {
        return {};
    }
    std::wstring name(MAX_PATH, L'\0');
    for (;;) {
        const DWORD n = GetModuleFileNameW(module, &name[0], (DWORD) name.size());
        if (n < name.size()) {
            return fs::path(name.substr(0, n));
        }
        name.resize(2 * name.size()); // it was cut
    }
#else
    Dl_info info = {};
    if (dladdr(address, &info) == 0 || info.dli_fname == nullptr) {
        return {};
    }
    std::error_code ec;
    const fs::path  path = fs::absolute(info.dli_fname, ec);
    return ec ? fs::path(info.dli_fname) : path.lexically_normal();
#endif
}

fs::path llama_skip_backend_folder() {
    const fs::path library = llama_skip_library_of((const void *) llama_skip_backend_folder);
    return library.empty() ? fs::path() : library.parent_path().parent_path() / "bin";
}

void llama_skip_load_backends() {
    static std::once_flag once;
    std::call_once(once, []() {
        const fs::path  folder = llama_skip_backend_folder();
        std::error_code ec;
        if (fs::is_directory(folder, ec)) {
            ggml_backend_load_all_from_path(folder.u8string().c_str());
        }
        if (ggml_backend_reg_count() == 0) {
            ggml_backend_load_all();
        }
    });
}
