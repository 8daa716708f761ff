#include "bypass/file.h"

#include "set/hash.h"

#include "llama-impl.h"
#include "llama-mmap.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

llama_skip_bypass_file::llama_skip_bypass_file(const std::string & path)
    : path(path), stream(ggml_fopen(path.c_str(), "rb")) {
    if (!stream) {
        throw std::runtime_error(format("the file cannot be read: %s", strerror(errno)));
    }
    ggml_context * ctx = nullptr;
    meta.reset(gguf_init_from_file_ptr(stream.get(), { /*no_alloc*/ true, &ctx }));
    shapes.reset(ctx);
    if (!meta) {
        throw std::runtime_error("not a readable GGUF file");
    }
    file.reset(new llama_file(stream.get()));
}

llama_skip_bypass_file::~llama_skip_bypass_file() = default;

static std::string shape_str(const ggml_tensor * t) {
    std::string text = std::to_string(t->ne[0]);
    for (int i = 1; i < ggml_n_dims(t); ++i) {
        text += "x" + std::to_string(t->ne[i]);
    }
    return text;
}

// the member of a gap's bypass that a tensor's name means, null for a name that is none
static ggml_tensor ** find_member(std::vector<llama_skip_bypass_tensors> & gaps, const std::string & name) {
    for (auto & gap : gaps) {
        const std::string prefix = "gap." + std::to_string(gap.first) + ".";
        for (const auto & [letter, member] : {
                 std::make_pair("a", &gap.a),
                 std::make_pair("b", &gap.b),
                 std::make_pair("u", &gap.u),
                 std::make_pair("v", &gap.v),
             }) {
            if (name == prefix + letter) {
                return member;
            }
        }
    }
    return nullptr;
}

static void check_vector(const ggml_tensor * t, int64_t n_embd) {
    if (t == nullptr) {
        return;
    }
    if (t->type != GGML_TYPE_F32) {
        throw std::runtime_error(format("tensor '%s' is %s, expected f32", t->name, ggml_type_name(t->type)));
    }
    if (ggml_n_dims(t) != 1 || t->ne[0] != n_embd) {
        throw std::runtime_error(
            format("tensor '%s' has shape %s, expected %d", t->name, shape_str(t).c_str(), (int) n_embd));
    }
}

static void check_matrix(const ggml_tensor * t, int64_t n_in, int64_t n_out) {
    const bool is_float = t->type == GGML_TYPE_F32 || t->type == GGML_TYPE_F16 || t->type == GGML_TYPE_BF16;
    if (!is_float && !ggml_is_quantized(t->type)) {
        throw std::runtime_error(
            format("tensor '%s' is %s, expected f32, f16, bf16 or a quantized type", t->name, ggml_type_name(t->type)));
    }
    if (t->ne[0] != n_in || t->ne[1] != n_out || t->ne[2] != 1 || t->ne[3] != 1) {
        throw std::runtime_error(
            format("tensor '%s' has shape %s, expected %dx%d", t->name, shape_str(t).c_str(), (int) n_in, (int) n_out));
    }
}

static void check_shapes(const llama_skip_bypass_tensors & gap, int64_t n_embd) {
    if (gap.tensors().empty()) {
        throw std::runtime_error(format("the tensors of the gap at block %d are missing", gap.first));
    }
    if ((gap.u == nullptr) != (gap.v == nullptr)) {
        throw std::runtime_error(format("tensor 'gap.%d.%s' is missing", gap.first, gap.u ? "v" : "u"));
    }
    check_vector(gap.a, n_embd);
    check_vector(gap.b, n_embd);
    if (gap.u) {
        check_matrix(gap.v, n_embd, std::max<int64_t>(gap.v->ne[1], 1));
        check_matrix(gap.u, gap.v->ne[1], n_embd);
    }
}

void llama_skip_bypass_file::describe(std::vector<llama_skip_bypass_tensors> & gaps, int64_t n_embd) const {
    for (ggml_tensor * t = ggml_get_first_tensor(shapes.get()); t; t = ggml_get_next_tensor(shapes.get(), t)) {
        ggml_tensor ** member = find_member(gaps, t->name);
        if (member == nullptr) {
            throw std::runtime_error(format("tensor '%s' is not expected: the plan has no bypass with it", t->name));
        }
        *member = t;

        const size_t offs = gguf_get_data_offset(meta.get()) +
                            gguf_get_tensor_offset(meta.get(), gguf_find_tensor(meta.get(), t->name));
        if (offs > file->size() || ggml_nbytes(t) > file->size() - offs) {
            throw std::runtime_error(format("the file is cut short: tensor '%s' ends behind its end", t->name));
        }
    }
    for (const auto & gap : gaps) {
        check_shapes(gap, n_embd);
    }
}

std::vector<uint8_t> llama_skip_bypass_file::read(const ggml_tensor * tensor) {
    const int64_t        id = gguf_find_tensor(meta.get(), tensor->name);
    std::vector<uint8_t> data(ggml_nbytes(tensor));
    file->seek(gguf_get_data_offset(meta.get()) + gguf_get_tensor_offset(meta.get(), id), SEEK_SET);
    file->read_raw(data.data(), data.size());
    return data;
}

void llama_skip_bypass_file::hash(llama_skip_bypass_tensors & gap) {
    llama_skip_hash hash;
    hash.add(&gap.norm_eps, sizeof(gap.norm_eps));
    for (const ggml_tensor * t : gap.tensors()) {
        const std::vector<uint8_t> data = read(t);
        if (!ggml_validate_row_data(t->type, data.data(), data.size())) {
            throw std::runtime_error(format("%s: tensor '%s' has values that are not finite", path.c_str(), t->name));
        }
        hash.add(t->name);
        hash.add(std::string(ggml_type_name(t->type)) + " " + shape_str(t));
        hash.add(data.data(), data.size());
    }
    gap.hash = hash.hex();
}
