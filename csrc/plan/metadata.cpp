#include "plan/metadata.h"

#include <stdexcept>

static void wrong_type(const gguf_context * ctx, const std::string & key, int64_t id, const char * expected) {
    throw std::runtime_error(
        "metadata " + key + ": expected " + expected + ", found " + gguf_type_name(gguf_get_kv_type(ctx, id)));
}

bool llama_skip_gguf_int(const gguf_context * ctx, const std::string & key, int64_t & value) {
    const int64_t id = gguf_find_key(ctx, key.c_str());
    if (id < 0) {
        return false;
    }
    switch (gguf_get_kv_type(ctx, id)) {
        case GGUF_TYPE_UINT8:
            value = gguf_get_val_u8(ctx, id);
            break;
        case GGUF_TYPE_INT8:
            value = gguf_get_val_i8(ctx, id);
            break;
        case GGUF_TYPE_UINT16:
            value = gguf_get_val_u16(ctx, id);
            break;
        case GGUF_TYPE_INT16:
            value = gguf_get_val_i16(ctx, id);
            break;
        case GGUF_TYPE_UINT32:
            value = gguf_get_val_u32(ctx, id);
            break;
        case GGUF_TYPE_INT32:
            value = gguf_get_val_i32(ctx, id);
            break;
        case GGUF_TYPE_UINT64:
            value = (int64_t) gguf_get_val_u64(ctx, id);
            break;
        case GGUF_TYPE_INT64:
            value = gguf_get_val_i64(ctx, id);
            break;
        default:
            wrong_type(ctx, key, id, "an integer");
    }
    return true;
}

bool llama_skip_gguf_float(const gguf_context * ctx, const std::string & key, float & value) {
    const int64_t id = gguf_find_key(ctx, key.c_str());
    if (id < 0) {
        return false;
    }
    if (gguf_get_kv_type(ctx, id) != GGUF_TYPE_FLOAT32) {
        wrong_type(ctx, key, id, "f32");
    }
    value = gguf_get_val_f32(ctx, id);
    return true;
}

bool llama_skip_gguf_str(const gguf_context * ctx, const std::string & key, std::string & value) {
    const int64_t id = gguf_find_key(ctx, key.c_str());
    if (id < 0) {
        return false;
    }
    if (gguf_get_kv_type(ctx, id) != GGUF_TYPE_STRING) {
        wrong_type(ctx, key, id, "a string");
    }
    value = gguf_get_val_str(ctx, id);
    return true;
}

// the id of an array of `type`, -1 where there is no such key
static int64_t find_array(const gguf_context * ctx, const std::string & key, gguf_type type, const char * expected) {
    const int64_t id = gguf_find_key(ctx, key.c_str());
    if (id >= 0 && (gguf_get_kv_type(ctx, id) != GGUF_TYPE_ARRAY || gguf_get_arr_type(ctx, id) != type)) {
        wrong_type(ctx, key, id, expected);
    }
    return id;
}

bool llama_skip_gguf_ints(const gguf_context * ctx, const std::string & key, std::vector<int32_t> & values) {
    const int64_t id = find_array(ctx, key, GGUF_TYPE_INT32, "an array of i32");
    if (id < 0) {
        return false;
    }
    const auto * data = (const int32_t *) gguf_get_arr_data(ctx, id);
    values.assign(data, data + gguf_get_arr_n(ctx, id));
    return true;
}

bool llama_skip_gguf_floats(const gguf_context * ctx, const std::string & key, std::vector<float> & values) {
    const int64_t id = find_array(ctx, key, GGUF_TYPE_FLOAT32, "an array of f32");
    if (id < 0) {
        return false;
    }
    const auto * data = (const float *) gguf_get_arr_data(ctx, id);
    values.assign(data, data + gguf_get_arr_n(ctx, id));
    return true;
}

bool llama_skip_gguf_strs(const gguf_context * ctx, const std::string & key, std::vector<std::string> & values) {
    const int64_t id = find_array(ctx, key, GGUF_TYPE_STRING, "an array of strings");
    if (id < 0) {
        return false;
    }
    values.clear();
    for (size_t i = 0; i < gguf_get_arr_n(ctx, id); ++i) {
        values.emplace_back(gguf_get_arr_str(ctx, id, i));
    }
    return true;
}
