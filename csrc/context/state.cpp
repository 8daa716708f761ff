// What saved states say about the mask of a context, and the members of llama_context that write and read it.

#include "context/state.h"

#include "bypass/bypass.h"
#include "load/load.h"
#include "set/spec.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "llama-memory.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>

static constexpr uint32_t state_magic = 0x70696b73; // "skip"

static constexpr uint32_t max_tag = 1 << 20; // bytes; longer ones are no tags

static const std::string weights_word = "weights ";

std::string llama_skip_make_tag(const llama_skip & loaded, const llama_skip & skip) {
    std::string tag;
    for (const auto & [name, value] : {
             std::make_pair("skip", llama_skip_set_str(loaded)),
             std::make_pair("mask", llama_skip_set_str(llama_skip_added(loaded, skip))),
             std::make_pair("scale", llama_skip_scale_str(skip)),
             std::make_pair("bypass", llama_skip_bypass_hashes(skip)),
             std::make_pair("disk scale", llama_skip_disk_scale_str(skip)),
         }) {
        if (!value.empty()) {
            tag += format("%s%s %s", tag.empty() ? "" : ", ", name, value.c_str());
        }
    }
    return tag;
}

std::string llama_skip_saved_tag(const llama_model & model, const llama_skip & skip) {
    const std::string tag = llama_skip_make_tag(model.hparams.skip, skip);
    const std::string id  = tag.empty() ? "" : llama_skip_weights_id(model);
    return id.empty() ? tag : weights_word + id + ", " + tag;
}

std::string llama_skip_file_tag(const std::string & path) {
    std::ifstream file(std::filesystem::u8path(path), std::ios::binary);
    const auto    read = [&] {
        uint32_t value = 0;
        file.read(reinterpret_cast<char *>(&value), sizeof(value));
        return value;
    };
    read(); // the kind of file
    read(); // its version
    file.seekg(sizeof(llama_token) * (std::streamoff) read(), std::ios::cur);
    if (read() != state_magic) {
        return "";
    }
    std::string tag(std::min<uint32_t>(read(), max_tag), 0);
    file.read(tag.data(), tag.size());
    return file ? tag : "";
}

void llama_context::skip_state_write(llama_io_write_i & io, llama_seq_id seq_id) const {
    if (!memory) {
        return; // such a state is empty
    }
    const llama_skip_mask missing = memory->skip.masked(seq_id) & ~cparams.skip.no_cache();
    if (missing.any()) {
        throw std::runtime_error(format("tokens that were decoded while blocks %s were masked cannot be saved: remove "
                                        "them or mask the blocks again",
            llama_skip_layers_str(missing).c_str()));
    }
    const std::string tag = llama_skip_saved_tag(model, cparams.skip);
    if (!tag.empty()) {
        io.write(&state_magic, sizeof(state_magic));
        io.write_string(tag);
    }
}

[[noreturn]] static void refuse_state(const std::string & saved, const std::string & tag) {
    const auto set_of = [](const std::string & t) {
        return t.compare(0, weights_word.size(), weights_word) == 0 ? t.substr(t.find(", ") + 2) : t;
    };
    const auto what = [](const std::string & t) {
        return t.empty() ? "no block left out" : "'" + t + "'";
    };
    const bool other_file = set_of(saved) == set_of(tag);
    throw std::runtime_error(format("the state was saved with %s, this context has %s",
        what(other_file ? saved : set_of(saved)).c_str(), what(other_file ? tag : set_of(tag)).c_str()));
}

namespace {

// Passes on what a memory reads. A context that leaves nothing out has no mark to read first: it tells one by the first
// word, which in upstream's states is a small count.
class state_reader : public llama_io_read_i {
public:
    state_reader(llama_io_read_i & io, bool plain) : io(io), may_be_mark(plain) {}

    void read(void * dst, size_t size) override {
        io.read(dst, size);
        if (may_be_mark && size == sizeof(state_magic) && memcmp(dst, &state_magic, size) == 0) {
            std::string saved;
            io.read_string(saved);
            refuse_state(saved, "");
        }
        may_be_mark = false;
    }

    void read_tensor(ggml_tensor * tensor, size_t offset, size_t size) override {
        io.read_tensor(tensor, offset, size);
    }

    void discard() override { io.discard(); }

    size_t n_bytes() override { return io.n_bytes(); }

private:
    llama_io_read_i & io;

    bool may_be_mark;
};

} // namespace

std::unique_ptr<llama_io_read_i> llama_context::skip_state_reader(llama_io_read_i & io) const {
    const std::string tag = llama_skip_saved_tag(model, cparams.skip);
    if (!tag.empty()) {
        uint32_t magic = 0;
        io.read(&magic, sizeof(magic));

        std::string saved;
        if (magic == state_magic) {
            io.read_string(saved);
        }
        if (saved != tag) {
            refuse_state(saved, tag);
        }
    }
    return std::make_unique<state_reader>(io, tag.empty());
}

void llama_context::skip_state_restored(llama_seq_id seq_id) {
    if (!memory) {
        return;
    }
    // the tag agreed, so the tokens were decoded under this mask or a smaller one
    const llama_skip_mask masked = cparams.skip.no_cache() & ~model.hparams.skip.no_cache();
    const llama_seq_id    n_seq  = cparams.kv_unified ? LLAMA_MAX_SEQ : cparams.n_seq_max;
    for (llama_seq_id s = std::max(seq_id, 0); s < (seq_id < 0 ? n_seq : seq_id + 1); ++s) {
        memory->skip.seq_rm(s, -1, -1);
        memory->skip.add(s, 0, memory->seq_pos_max(s) + 1, masked);
    }
}
