// Chat templates, tool calls and JSON schemas: common/chat.h, with OpenAI's JSON as text on both sides.

#include "bindings/generate/prompt.h"

#include "bindings/generate/grammar.h"
#include "bindings/threads/deep-stack.h"
#include "bindings/threads/gil.h"

#include "json-schema-to-grammar.h"

#include <pybind11/stl.h>

using json = common_json;

static const size_t n_stack = 512 * 1024 * 1024;

class py_chat_templates {
public:
    // source: a Jinja template, or the name of one of llama.cpp's own if not is_jinja; empty: the model's
    py_chat_templates(std::shared_ptr<py_model> model_, const std::string & source, bool is_jinja)
        : model(std::move(model_)), is_jinja(is_jinja) {
        const without_gil nogil;
        log_scope         log(model->log);

        check_template_depth(source);
        for (const char * name : { static_cast<const char *>(nullptr), "tool_use" }) {
            const char * own = llama_model_chat_template(model->raw, name);
            check_template_depth(own ? own : "");
        }
        on_deep_stack(n_stack, [&]() { raw = common_chat_templates_init(model->raw, source); });
    }

    py_chat_prompt apply(const std::string & request) const {
        const without_gil nogil;
        log_scope         log;
        try {
            check_json_depth("request", request);
            py_chat_prompt res;
            on_deep_stack(n_stack, [&]() { res = apply(json::parse(request)); });
            return res;
        } catch (const std::exception & err) {
            throw std::invalid_argument(err.what());
        }
    }

private:
    py_chat_prompt apply(const json & request) const;

    std::shared_ptr<py_model> model;
    common_chat_templates_ptr raw;

    bool is_jinja;
};

py_chat_prompt py_chat_templates::apply(const json & request) const {
    py_chat_prompt res;
    res.reasoning_format = common_reasoning_format_from_name(request.value("reasoning_format", "none"));

    common_chat_templates_inputs inputs;
    inputs.messages         = common_chat_msgs_parse_oaicompat(request.at("messages"));
    inputs.tools            = common_chat_tools_parse_oaicompat(request.value("tools", json()));
    inputs.tool_choice      = common_chat_tool_choice_parse_oaicompat(request.value("tool_choice", "auto"));
    inputs.json_schema      = request.contains("json_schema") ? request.at("json_schema").dump() : "";
    inputs.grammar          = request.value("grammar", "");
    inputs.reasoning_format = res.reasoning_format;
    inputs.use_jinja        = is_jinja;
    inputs.add_bos          = llama_vocab_get_add_bos(model->vocab());
    inputs.add_eos          = llama_vocab_get_add_eos(model->vocab());
    const json options      = request.value("chat_template_kwargs", json::object()); // items() refers to it
    for (const auto & item : options.items()) {
        inputs.chat_template_kwargs[item.key()] = item.value().dump();
    }
    inputs.enable_thinking = options.value("enable_thinking", json(true)) != false;
    res.parse_tool_calls   = !inputs.tools.empty() && inputs.tool_choice != COMMON_CHAT_TOOL_CHOICE_NONE;
    res.params             = common_chat_templates_apply(raw.get(), inputs);
    for (const auto & text : res.params.preserved_tokens) {
        const llama_token token = model->single_token(text);
        if (token != LLAMA_TOKEN_NULL) {
            res.preserved.push_back(token);
        }
    }
    return res;
}

// common_chat_templates_init throws too, but without the reason
static void check_template(const std::string & source) {
    log_scope log;
    check_template_depth(source);
    try {
        on_deep_stack(n_stack, [&]() { common_chat_template(source, "", ""); });
    } catch (const std::exception & err) {
        throw std::invalid_argument(std::string("chat_template: ") + err.what());
    }
}

static std::string schema_grammar(const std::string & schema) {
    try {
        log_scope log;
        check_json_depth("json_schema", schema);
        std::string res;
        on_deep_stack(n_stack, [&]() { res = json_schema_to_grammar(json::parse(schema)); });
        return res;
    } catch (const std::exception & err) {
        throw std::invalid_argument(std::string("JSON schema: ") + err.what());
    }
}

void register_chat(py::module_ & m) {
    py::class_<py_chat_prompt>(m, "ChatPrompt")
        .def_property_readonly("prompt", [](const py_chat_prompt & p) { return py::bytes(p.params.prompt); })
        .def_property_readonly("stop", [](const py_chat_prompt & p) { return p.params.additional_stops; })
        .def_property_readonly("grammar", [](const py_chat_prompt & p) { return p.params.grammar; })
        .def_property_readonly("preserved", [](const py_chat_prompt & p) { return p.preserved; });

    py::class_<py_chat_templates>(m, "ChatTemplates")
        .def(py::init<std::shared_ptr<py_model>, const std::string &, bool>(), py::arg("model"), py::arg("source"),
            py::arg("is_jinja"))
        .def(
            "apply", py::overload_cast<const std::string &>(&py_chat_templates::apply, py::const_), py::arg("request"));

    m.def("builtin_templates", []() {
        std::vector<const char *> names(llama_chat_builtin_templates(nullptr, 0));
        llama_chat_builtin_templates(names.data(), names.size());
        return std::vector<std::string>(names.begin(), names.end());
    });
    m.def("check_chat_template", check_template, py::arg("source"));
    m.def("json_schema_to_grammar", schema_grammar, py::arg("schema"));
}
