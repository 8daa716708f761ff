#pragma once

#include <string>

// Whether a file belongs to a model and is none itself: metadata beside it (x.skip.gguf), or a plan with tensors, by
// name (x.heal.gguf) or by what is in it.
bool common_skip_is_companion(const std::string & path);
