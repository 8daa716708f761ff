#include "bindings/model/model.h"

#include "bindings/devices.h"
#include "bindings/threads/gil.h"

#include "llama-skip.h"
#include "set/blocks.h"
#include "set/overrides.h"

#include "common.h"
#include "ggml-cpp.h"
#include "gguf.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <exception>
#include <filesystem>
#include <mutex>

#ifndef _WIN32
#include <unistd.h>
#endif

static int64_t process_id() {
#ifdef _WIN32
    return 0; // there is no fork
#else
    return getpid();
#endif
}

namespace {

// What happens in Python while a model loads: Ctrl-C, and the caller's callback.
struct load_progress {
    py::object         callback;
    std::exception_ptr error;
    bool               cancelled = false;

    std::chrono::steady_clock::time_point next = std::chrono::steady_clock::now();

    bool step(float fraction) {
        if (must_stay()) {
            return false;
        }
        const auto now = std::chrono::steady_clock::now();
        if (now < next && fraction < 1.0f) {
            return true;
        }
        next = now + std::chrono::milliseconds(50);

        with_gil([&]() {
            try {
                if (PyErr_CheckSignals() != 0) {
                    throw py::error_already_set();
                }
                const py::object res     = callback.is_none() ? py::none() : callback(fraction);
                const int        is_true = res.is_none() ? 1 : PyObject_IsTrue(res.ptr());
                if (is_true < 0) {
                    throw py::error_already_set();
                }
                cancelled = is_true == 0;
            } catch (const std::exception &) {
                error = std::current_exception();
            }
        });
        return !cancelled && !error;
    }
};

} // namespace

static bool on_progress(float fraction, void * user_data) {
    return static_cast<load_progress *>(user_data)->step(fraction);
}

void check_exists(const std::string & path) {
    if (!std::filesystem::exists(std::filesystem::u8path(path))) {
        errno = ENOENT;
        PyErr_SetFromErrnoWithFilename(PyExc_FileNotFoundError, path.c_str());
        throw py::error_already_set();
    }
}

static bool is_block_count(const std::string & key) {
    static const std::string end = ".block_count";
    return key.size() > end.size() && key.compare(key.size() - end.size(), end.size(), end) == 0;
}

// what upstream asserts
static void check_block_count(const std::string & name, int64_t n) {
    if (n < 1 || n > LLAMA_SKIP_MAX_LAYERS) {
        throw std::invalid_argument(name + " is " + std::to_string(n) + ", a model has 1 to " +
                                    std::to_string(LLAMA_SKIP_MAX_LAYERS) + " blocks");
    }
}

// why upstream's check of a file failed, where it is this one
static std::string bad_block_count(const std::string & path) {
    const gguf_context_ptr meta(gguf_init_from_file(path.c_str(), { /*no_alloc =*/true, /*ctx =*/nullptr }));
    for (int64_t i = 0; meta && i < gguf_get_n_kv(meta.get()); ++i) {
        const std::string key = gguf_get_key(meta.get(), i);
        if (is_block_count(key) && gguf_get_kv_type(meta.get(), i) == GGUF_TYPE_UINT32) {
            try {
                check_block_count(key, gguf_get_val_u32(meta.get(), i));
            } catch (const std::invalid_argument & err) {
                return std::string(": ") + err.what();
            }
        }
    }
    return "";
}

// an argument of Llama and the override that it becomes
struct skip_argument {
    const char *        name;
    const std::string & value;
    const char *        key;
    const char *        other; // an override that says the same
};

// Refuses a bad set before anything is loaded; returns the overrides with what the arguments say in them, terminated.
static std::vector<llama_model_kv_override> make_overrides(const std::string & path, const py_model_params & params) {
    std::vector<llama_model_kv_override> res = params.overrides;

    const skip_argument arguments[] = {
        { "skip_layers", params.skip_layers, LLAMA_SKIP_KEY_LAYERS, LLAMA_SKIP_KEY_PLAN },
        { "skip_scale", params.skip_scale, LLAMA_SKIP_KEY_SCALE, LLAMA_SKIP_KEY_SCALE },
        { "disk_layers", params.disk_layers, LLAMA_SKIP_KEY_DISK, LLAMA_SKIP_KEY_DISK },
        { "disk_scale", params.disk_scale, LLAMA_SKIP_KEY_DISK_SCALE, LLAMA_SKIP_KEY_DISK_SCALE },
    };
    bool among_overrides = false;
    for (const auto & o : params.overrides) {
        const std::string key = o.key;
        if (o.tag == LLAMA_KV_OVERRIDE_TYPE_INT && is_block_count(key)) {
            check_block_count("kv_overrides: " + key, o.val_i64);
        }
        for (const auto & a : arguments) {
            if (!a.value.empty() && (key == a.key || key == a.other)) {
                throw std::invalid_argument(
                    std::string(a.name) + ": also given as kv_overrides['" + key + "'], give it once");
            }
        }
        among_overrides = among_overrides || (llama_skip_is_override(key) && key != LLAMA_SKIP_KEY_UNTESTED);
    }
    for (const auto & a : arguments) {
        if (!a.value.empty()) {
            const bool is_set = a.key == std::string(LLAMA_SKIP_KEY_LAYERS);
            llama_skip_add_override(res, is_set ? llama_skip_key_of(a.value) : a.key, a.value);
        }
    }
    res.push_back({});

    // the check silences the log of the whole process while it reads the header
    static std::mutex                 mutex;
    const std::lock_guard<std::mutex> lock(mutex);

    const bool ok = among_overrides ? llama_skip_check_overrides(path.c_str(), res.data())
                                    : llama_skip_check_flags(path.c_str(), res.data(), "skip_layers", "skip_scale");
    if (!ok) {
        throw std::invalid_argument(llama_skip_error());
    }
    return res;
}

static std::vector<ggml_backend_dev_t> make_devices(const py_model_params & params) {
    devices_init();
    devices_add_rpc(params.rpc_servers);
    if (params.default_devices) {
        return devices_default(params.rpc_servers);
    }
    std::vector<ggml_backend_dev_t> res = devices_by_name(params.devices);
    res.push_back(nullptr);
    return res;
}

static std::vector<float> make_tensor_split(const py_model_params & params) {
    std::vector<float> res = params.tensor_split;
    if (res.size() > llama_max_devices()) {
        throw std::invalid_argument("tensor_split: " + std::to_string(res.size()) + " devices, at most " +
                                    std::to_string(llama_max_devices()) + " are supported");
    }
    res.resize(llama_max_devices());
    return res;
}

py_model::py_model(const std::string & path, const py_model_params & params)
    : log(params.log), has_weights(!params.raw.vocab_only && !params.raw.no_alloc), pid(process_id()) {
    check_exists(path);

    load_progress progress;
    progress.callback = params.progress;

    const without_gil nogil;
    log_scope         log(this->log);

    const auto overrides = make_overrides(path, params);
    const auto split     = make_tensor_split(params);
    auto       devices   = make_devices(params);

    llama_model_params raw_params = params.raw;
    if (raw_params.no_alloc) {
        raw_params.load_mode = LLAMA_LOAD_MODE_NONE; // upstream asserts that nothing is mapped
    }
    raw_params.kv_overrides                = overrides.data();
    raw_params.tensor_split                = params.tensor_split.empty() ? nullptr : split.data();
    raw_params.devices                     = devices.empty() ? nullptr : devices.data();
    raw_params.progress_callback           = on_progress;
    raw_params.progress_callback_user_data = &progress;

    raw = llama_model_load_from_file(path.c_str(), raw_params);
    if (progress.error) {
        llama_model_free(raw);
        std::rethrow_exception(progress.error);
    }
    if (raw == nullptr) {
        const std::string reason = take_check_failed() ? bad_block_count(path) : "";
        throw model_load_error(
            progress.cancelled ? "loading " + path + " was cancelled" : log.message("cannot load " + path + reason));
    }
}

py_model::~py_model() {
    // a forked process has the memory, but neither the threads nor the devices that freeing it needs
    if (!is_foreign()) {
        log_scope log(this->log);
        llama_model_free(raw);
    }
}

bool py_model::is_foreign() const {
    return process_id() != pid;
}

void py_model::check_process() const {
    if (is_foreign()) {
        throw std::runtime_error(
            "this model was loaded before the process was forked: load it again in the new process");
    }
}

std::string read_text(const std::function<int32_t(char *, size_t)> & f) {
    std::string res(256, '\0');
    int32_t     n = f(res.data(), res.size());
    if (n >= (int32_t) res.size()) {
        res.resize(n + 1);
        n = f(res.data(), res.size());
    }
    res.resize(std::max(n, 0));
    return res;
}

std::string py_model::arch() const {
    return read_text(
        [&](char * buf, size_t n) { return llama_model_meta_val_str(raw, "general.architecture", buf, n); });
}

void py_model::check_token(int64_t token) const {
    const int32_t n_vocab = llama_vocab_n_tokens(vocab());
    if (token < 0 || token >= n_vocab) {
        throw std::invalid_argument(
            "token " + std::to_string(token) + " is out of range, the vocabulary has 0-" + std::to_string(n_vocab - 1));
    }
}

llama_token py_model::single_token(const std::string & text) const {
    const auto tokens = common_tokenize(vocab(), text, false, true);
    return tokens.size() == 1 ? tokens[0] : LLAMA_TOKEN_NULL;
}
