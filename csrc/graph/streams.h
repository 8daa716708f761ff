#pragma once

#include "llama.h"

#include <cstdint>
#include <string>
#include <vector>

// Collects the residual stream before and after each block that a graph runs, by the names upstream's graphs give it.
// It is the eval callback of a context and wants nothing while it is not active.
class LLAMA_API llama_skip_streams {
public:
    using rows = std::vector<std::vector<float>>; // [n_kept][n_tokens * n_embd]

    static bool on_tensor(ggml_tensor * t, bool ask, void * user_data);

    // from now on, for the blocks `kept`
    void begin(const std::vector<int32_t> & kept, const std::string & arch);

    void stop() { active = false; }

    // stops; throws std::runtime_error where the graph did not name a state of n_values; outputs may be null, and then
    // the last block may have ended with fewer rows
    void end(size_t n_values, rows & inputs, rows * outputs);

private:
    // where the data of t goes, or null; `source`: the tensor that has it
    std::vector<float> * target(const ggml_tensor * t, const ggml_tensor *& source);

    bool is_first_input(const ggml_tensor * t);

    bool         active   = false;
    bool         mismatch = false; // the second block does not read what the first one is said to end with
    int          n_inputs = 0;     // blocks of this graph whose input was looked at: the first one's, then the second's
    std::string  arch;
    const char * input_name = nullptr; // of the architecture

    std::vector<int32_t> kept;
    std::vector<float>   first;  // what enters the first block
    rows                 ends;   // what leaves a block, past the bypass of a gap behind it
    rows                 scaled; // what enters that bypass, where there is one
};
