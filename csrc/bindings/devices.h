#pragma once

#include "ggml-backend.h"

#include <string>
#include <vector>

// llama_backend_init(), once, and not before something needs a back-end
void devices_init();

// registers the devices of "host:port" servers; throws std::runtime_error
void devices_add_rpc(const std::vector<std::string> & servers);

// devices by name; throws std::invalid_argument that lists those there are
std::vector<ggml_backend_dev_t> devices_by_name(const std::vector<std::string> & names);

// Upstream's own choice without the RPC servers that another model asked for: the registry belongs to the process.
// Empty where upstream's choice is right as it is.
std::vector<ggml_backend_dev_t> devices_default(const std::vector<std::string> & servers);
