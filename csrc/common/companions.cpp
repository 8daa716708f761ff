#include "common/companions.h"

#include "common.h"
#include "ggml-cpp.h"
#include "gguf.h"

#include <cstdio>
#include <memory>

// Metadata and plans begin with their own keys. A model that has some too has its own before them, so that few files
// have to be read as far as their tensors.
static bool begins_with_our_keys(const std::string & path) {
    const std::unique_ptr<FILE, int (*)(FILE *)> file(ggml_fopen(path.c_str(), "rb"), fclose);
    if (!file) {
        return false;
    }
    std::string head(4096, '\0');
    head.resize(fread(&head[0], 1, head.size(), file.get()));
    return head.compare(0, 4, "GGUF") == 0 && head.find("skip.") != std::string::npos;
}

bool common_skip_is_companion(const std::string & path) {
    if (string_ends_with(path, ".skip.gguf") || string_ends_with(path, ".heal.gguf")) {
        return true;
    }
    if (!string_ends_with(path, ".gguf") || !begins_with_our_keys(path)) {
        return false;
    }
    const gguf_context_ptr meta(gguf_init_from_file(path.c_str(), { /*no_alloc =*/true, /*ctx =*/nullptr }));

    bool is_ours  = false;
    bool is_model = false;
    for (int64_t i = 0; meta && i < gguf_get_n_kv(meta.get()); ++i) {
        const std::string key = gguf_get_key(meta.get(), i);

        is_ours  = is_ours || key.compare(0, 5, "skip.") == 0;
        is_model = is_model || string_ends_with(key, ".block_count");
    }
    return is_ours && !is_model;
}
