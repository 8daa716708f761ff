#include "bindings/model/identity.h"

#include "bindings/model/model.h"
#include "bindings/threads/gil.h"
#include "plan/identity.h"

// a GGUF string is UTF-8 by its specification, not always in fact
static py::object text(const std::string & value) {
    return py::bytes(value).attr("decode")("utf-8", "replace");
}

static py::dict identify(const std::string & path) {
    check_exists(path);

    llama_skip_identity                 id;
    std::vector<llama_skip_file_tensor> tensors;
    {
        const without_gil nogil;
        log_scope         log;
        try {
            id = llama_skip_identify(path, tensors);
        } catch (const std::exception & err) {
            throw model_load_error(err.what());
        }
    }
    py::list rows;
    for (const auto & t : tensors) {
        rows.append(py::make_tuple(text(t.name), t.n_bytes, t.type, t.il, t.half));
    }
    py::dict res;
    res["model_id"]      = id.model_id;
    res["file_id"]       = id.file_id;
    res["architecture"]  = text(id.architecture);
    res["name"]          = text(id.name);
    res["file_type"]     = id.file_type;
    res["n_layer"]       = id.n_layer;
    res["n_embd"]        = id.n_embd;
    res["n_vocab"]       = id.n_vocab;
    res["weights_bytes"] = id.n_bytes;
    res["tensors"]       = rows;
    return res;
}

void register_identity(py::module_ & m) {
    m.def("identify", identify, py::arg("path"));
}
