#pragma once

#include <cinttypes>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>

// 64-bit FNV-1a over fields, each as its length in decimal, a colon and its bytes
class llama_skip_hash {
public:
    void add(const std::string & field) { add(field.data(), field.size()); }

    void add(const void * data, size_t size) {
        const std::string length = std::to_string(size) + ":";
        update(length.data(), length.size());
        update(data, size);
    }

    std::string hex() const {
        char text[17];
        snprintf(text, sizeof(text), "%016" PRIx64, state);
        return text;
    }

private:
    void update(const void * data, size_t size) {
        for (size_t i = 0; i < size; ++i) {
            state = (state ^ ((const uint8_t *) data)[i]) * 0x100000001b3;
        }
    }

    uint64_t state = 0xcbf29ce484222325;
};
