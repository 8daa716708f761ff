#pragma once

#include <cstddef>
#include <functional>

// Calls on a stack of this size, of which only what is used takes memory: upstream recurses over what a user gives, a
// template, a schema, or a text without a break. Needs no GIL; what is thrown passes through.
void on_deep_stack(size_t n_bytes, const std::function<void()> & call);
