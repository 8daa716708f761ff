#include "set/names.h"

llama_skip_names llama_skip_names_for(const std::string & layers, const std::string & scale) {
    llama_skip_names names;
    names.layers = layers;
    names.scale  = scale;
    if (layers.compare(0, 2, "--") == 0) {
        names.disk       = "--disk-layers";
        names.disk_scale = "--disk-scale";
        names.disk_idle  = "--disk-idle";
    } else if (layers.find('_') != std::string::npos) {
        names.disk       = "disk_layers";
        names.disk_scale = "disk_scale";
        names.disk_idle  = "disk_idle";
    }
    return names;
}
