#include "bindings/devices.h"

#include "backends/backends.h"

#include "llama.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <stdexcept>

static std::mutex registry_mutex;

void devices_init() {
    static std::once_flag once;
    std::call_once(once, []() {
        llama_backend_init();
        llama_skip_load_backends(); // linked ones keep it from looking for more
    });
}

static bool is_rpc(ggml_backend_dev_t dev) {
    return strcmp(ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev)), "RPC") == 0;
}

void devices_add_rpc(const std::vector<std::string> & servers) {
    if (servers.empty()) {
        return;
    }
    using add_server_t = ggml_backend_reg_t (*)(const char * endpoint);

    std::lock_guard<std::mutex>            lock(registry_mutex);
    static std::vector<ggml_backend_reg_t> known;

    ggml_backend_reg_t rpc = ggml_backend_reg_by_name("RPC");
    const auto         add_server =
        rpc ? (add_server_t) ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_add_server") : nullptr;
    if (add_server == nullptr) {
        throw std::runtime_error("rpc_servers: this build has no RPC back-end");
    }
    for (const auto & server : servers) {
        ggml_backend_reg_t reg = add_server(server.c_str());
        if (reg == nullptr) {
            throw std::runtime_error("rpc_servers: " + server + " has no device");
        }
        if (std::find(known.begin(), known.end(), reg) == known.end()) {
            ggml_backend_register(reg);
            known.push_back(reg);
        }
    }
}

std::vector<ggml_backend_dev_t> devices_by_name(const std::vector<std::string> & names) {
    std::vector<ggml_backend_dev_t> res;
    for (const auto & name : names) {
        ggml_backend_dev_t dev = ggml_backend_dev_by_name(name.c_str());
        if (dev == nullptr) {
            std::string there;
            for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
                there += std::string(i ? ", " : "") + ggml_backend_dev_name(ggml_backend_dev_get(i));
            }
            throw std::invalid_argument("devices: no device is named '" + name + "', there are: " + there);
        }
        res.push_back(dev);
    }
    return res;
}

std::vector<ggml_backend_dev_t> devices_default(const std::vector<std::string> & servers) {
    std::vector<ggml_backend_dev_t> rpc;
    std::vector<ggml_backend_dev_t> gpus;
    std::vector<ggml_backend_dev_t> igpus;

    bool foreign = false;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t dev  = ggml_backend_dev_get(i);
        const auto         type = ggml_backend_dev_type(dev);
        if (type == GGML_BACKEND_DEVICE_TYPE_IGPU) {
            igpus.push_back(dev);
        } else if (type == GGML_BACKEND_DEVICE_TYPE_GPU && !is_rpc(dev)) {
            gpus.push_back(dev);
        } else if (type == GGML_BACKEND_DEVICE_TYPE_GPU) {
            // the description of an RPC device is its server
            const bool asked =
                std::find(servers.begin(), servers.end(), ggml_backend_dev_description(dev)) != servers.end();
            if (asked) {
                rpc.push_back(dev);
            }
            foreign = foreign || !asked;
        }
    }
    if (!foreign) {
        return {};
    }
    rpc.insert(rpc.end(), gpus.begin(), gpus.end());
    if (gpus.empty()) {
        rpc.insert(rpc.end(), igpus.begin(), igpus.end());
    }
    rpc.push_back(nullptr);
    return rpc;
}
