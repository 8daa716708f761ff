#include "graph/loop.h"

llama_skip_last llama_skip_n_layer::operator-(int k) const {
    int64_t il = n - k;
    if (skip && k == 1) {
        while (il >= 0 && skip->out[il]) {
            --il;
        }
    }
    return { n - k, il };
}
