// Chat templates, tool calls and JSON schemas: common/chat.h, with OpenAI's JSON as text on both sides.

#include "bindings/generate/prompt.h"

#include "bindings/generate/grammar.h"

#include "json-schema-to-grammar.h"

#include <pybind11/stl.h>

#include <random>

using json = common_json;

class py_chat_templates {
public:
    // source: a Jinja template, or the name of one of llama.cpp's own if not is_jinja; empty: the model's
    py_chat_templates(std::shared_ptr<py_model> model_, const std::string & source, bool is_jinja)
        : model(std::move(model_)), is_jinja(is_jinja) {
        py::gil_scoped_release nogil;
        log_scope              log(model->log);

        raw = common_chat_templates_init(model->raw, source);
    }

    py_chat_prompt apply(const std::string & request) const {
        py::gil_scoped_release nogil;
        log_scope              log;
        try {
            return apply(json::parse(request));
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

static std::string make_call_id() {
    static const char  digits[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    std::random_device device;
    std::string        res = "call_";
    for (int i = 0; i < 24; ++i) {
        res += digits[device() % (sizeof(digits) - 1)];
    }
    return res;
}

static json delta_json(const common_chat_msg_diff & diff) {
    json res = json::object();
    if (!diff.reasoning_content_delta.empty()) {
        res["reasoning_content"] = diff.reasoning_content_delta;
    }
    if (!diff.content_delta.empty()) {
        res["content"] = diff.content_delta;
    }
    if (diff.tool_call_index != std::string::npos) {
        const auto & delta = diff.tool_call_delta;

        json call     = json::object();
        call["index"] = (uint64_t) diff.tool_call_index;
        if (!delta.name.empty()) {
            call["id"] = delta.id;
        }
        call["type"]                  = "function";
        call["function"]              = json::object();
        call["function"]["name"]      = delta.name.empty() ? json() : json(delta.name);
        call["function"]["arguments"] = delta.arguments;

        res["tool_calls"] = json::array();
        res["tool_calls"].push_back(call);
    }
    return res;
}

// Reads an answer while it grows.
class py_chat_parser {
public:
    explicit py_chat_parser(const py_chat_prompt & prompt) : params(prompt.params) {
        params.reasoning_format = prompt.reasoning_format;
        params.parse_tool_calls = prompt.parse_tool_calls;
        if (!prompt.params.parser.empty()) {
            params.parser.load(prompt.params.parser);
        }
    }

    // The changes that `added` makes to the message, as deltas of OpenAI's stream; throws std::runtime_error if a whole
    // text is not of the template's form.
    std::vector<std::string> update(const std::string & added, bool is_partial) {
        py::gil_scoped_release nogil;
        log_scope              log;

        text += added;
        common_chat_msg next = common_chat_parse(text, is_partial, params);

        std::vector<std::string> res;
        if (!next.empty()) {
            next.set_tool_call_ids(ids, make_call_id);
            for (const auto & diff : common_chat_msg_diff::compute_diffs(msg, next)) {
                res.push_back(delta_json(diff).dump());
            }
            msg = std::move(next);
        }
        return res;
    }

    std::string message() const { return msg.to_json_oaicompat().dump_safe(); }

private:
    common_chat_parser_params params;
    common_chat_msg           msg;
    std::string               text;
    std::vector<std::string>  ids;
};

// common_chat_templates_init throws too, but without the reason
static void check_template(const std::string & source) {
    try {
        common_chat_template(source, "", "");
    } catch (const std::exception & err) {
        throw std::invalid_argument(std::string("chat_template: ") + err.what());
    }
}

static std::string schema_grammar(const std::string & schema) {
    try {
        check_json_depth("json_schema", schema);
        return json_schema_to_grammar(json::parse(schema));
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

    py::class_<py_chat_parser>(m, "ChatParser")
        .def(py::init<const py_chat_prompt &>(), py::arg("prompt"))
        .def("update", &py_chat_parser::update, py::arg("added"), py::arg("is_partial"))
        .def("message", &py_chat_parser::message);

    m.def("builtin_templates", []() {
        std::vector<const char *> names(llama_chat_builtin_templates(nullptr, 0));
        llama_chat_builtin_templates(names.data(), names.size());
        return std::vector<std::string>(names.begin(), names.end());
    });
    m.def("check_chat_template", check_template, py::arg("source"));
    m.def("json_schema_to_grammar", schema_grammar, py::arg("schema"));
}
