#include "bindings/system.h"

#include "backends/backends.h"
#include "bindings/devices.h"
#include "bindings/threads/gil.h"
#include "bindings/log-scope.h"
#include "set/arch-tested.h"

#include "llama.h"
#include "llama-skip.h"

#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

struct py_device {
    std::string name;
    std::string description;
    std::string type;
    std::string backend;
    size_t      memory_free;
    size_t      memory_total;
};

static const char * type_name(ggml_backend_dev_t dev) {
    switch (ggml_backend_dev_type(dev)) {
        case GGML_BACKEND_DEVICE_TYPE_CPU:
            return "cpu";
        case GGML_BACKEND_DEVICE_TYPE_GPU:
            return "gpu";
        case GGML_BACKEND_DEVICE_TYPE_IGPU:
            return "igpu";
        case GGML_BACKEND_DEVICE_TYPE_ACCEL:
            return "accel";
        default:
            return "other";
    }
}

static std::vector<py_device> devices() {
    const without_gil nogil;
    devices_init();

    std::vector<py_device> res;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t dev = ggml_backend_dev_get(i);

        py_device d = { ggml_backend_dev_name(dev), ggml_backend_dev_description(dev), type_name(dev),
            ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev)), 0, 0 };
        ggml_backend_dev_memory(dev, &d.memory_free, &d.memory_total);
        res.push_back(d);
    }
    return res;
}

static std::vector<std::string> backends() {
    devices_init();

    std::vector<std::string> res;
    for (size_t i = 0; i < ggml_backend_reg_count(); ++i) {
        res.emplace_back(ggml_backend_reg_name(ggml_backend_reg_get(i)));
    }
    return res;
}

// the library that each back-end is in, in the order of backends(); empty for the servers of others
static std::vector<std::filesystem::path> backend_libraries() {
    devices_init();

    std::vector<std::filesystem::path> res;
    for (size_t i = 0; i < ggml_backend_reg_count(); ++i) {
        res.push_back(llama_skip_library_of(ggml_backend_reg_get(i)));
    }
    return res;
}

static void load_backend(const std::filesystem::path & path) {
    const without_gil nogil;
    devices_init();
    log_scope log;
    if (ggml_backend_load(path.u8string().c_str()) == nullptr) {
        const std::string reasons = log.message("");
        throw std::runtime_error(
            reasons.empty() ? "this system lacks what it was built for" : reasons.substr(1)); // behind the newline
    }
}

static std::filesystem::path library_path() {
    return llama_skip_library_of((const void *) llama_skip_version);
}

static void check_skip(const std::string & path, const std::string & layers, const std::string & scale,
    const std::string & name_layers, const std::string & name_scale) {
    const without_gil nogil;
    log_scope         log;
    if (!llama_skip_check(path.c_str(), layers.c_str(), scale.c_str(), name_layers.c_str(), name_scale.c_str())) {
        throw std::invalid_argument(llama_skip_error());
    }
}

void register_system(py::module_ & m) {
    log_install();

    py::class_<py_device>(m, "Device")
        .def_readonly("name", &py_device::name)
        .def_readonly("description", &py_device::description)
        .def_readonly("type", &py_device::type)
        .def_readonly("backend", &py_device::backend)
        .def_readonly("memory_free", &py_device::memory_free)
        .def_readonly("memory_total", &py_device::memory_total);

    m.def("version", llama_skip_version);
    m.def("upstream", llama_skip_upstream);
    m.def("tested_architectures",
        []() { return std::vector<std::string>(std::begin(tested_archs), std::end(tested_archs)); });
    m.def("max_sequences", llama_max_parallel_sequences);
    m.def("source_version", []() { return LLAMA_SKIP_SOURCE_VERSION; });
    m.def("library_path", library_path);
    m.def("backends", backends);
    m.def("backend_libraries", backend_libraries);
    m.def("backend_folder", llama_skip_backend_folder);
    m.def("load_backend", load_backend, py::arg("path"));
    m.def("devices", devices);
    m.def("check_skip", check_skip, py::arg("path"), py::arg("layers"), py::arg("scale"), py::arg("name_layers"),
        py::arg("name_scale"));
}
