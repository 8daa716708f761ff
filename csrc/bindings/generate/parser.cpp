#include "bindings/generate/parser.h"

#include "bindings/generate/prompt.h"
#include "bindings/threads/gil.h"

#include "chat-peg-parser.h"

#include <pybind11/stl.h>

#include <memory>
#include <random>

using json = common_json;

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
        msg.role = "assistant";
    }

    // The changes that `added` makes to the message, as deltas of OpenAI's stream. What has been said stays said, and
    // the rest of a text that ends within a call, or that is not of the template's form, is content.
    std::vector<std::string> update(const std::string & added, bool is_last) {
        const without_gil nogil;
        log_scope         log;

        std::vector<std::string> res;
        const size_t             n_before = text.size();
        text += added;
        try {
            common_chat_msg next = parse(text, !is_last);
            if (!(next == msg) && is_more(next)) {
                say(std::move(next), res);
                n_said_before = n_before;
                n_said        = text.size();
            }
        } catch (const std::runtime_error &) { // not of the form
        }
        if (is_last) {
            end(res);
        }
        return res;
    }

    std::string message() const { return msg.to_json_oaicompat().dump_safe(); }

private:
    common_chat_parser_params params;
    common_chat_msg           msg;
    std::string               text;
    std::vector<std::string>  ids;

    size_t n_said_before = 0; // the message is what was read in between
    size_t n_said        = 0;

    common_chat_msg parse(const std::string & input, bool is_partial) {
        common_chat_msg res = common_chat_parse(input, is_partial, params);
        res.role            = "assistant";
        res.set_tool_call_ids(ids, make_call_id);
        return res;
    }

    void say(common_chat_msg && next, std::vector<std::string> & deltas) {
        for (const auto & diff : common_chat_msg_diff::compute_diffs(msg, next)) {
            deltas.push_back(delta_json(diff).dump());
        }
        msg = std::move(next);
    }

    // whether a message only adds to what has been said: upstream's says less of a text that turns out to be no call
    bool is_more(const common_chat_msg & next) const {
        const auto begins = [](const std::string & longer, const std::string & begin) {
            return longer.compare(0, begin.size(), begin) == 0;
        };
        bool res = next.tool_calls.size() >= msg.tool_calls.size() && begins(next.content, msg.content) &&
                   begins(next.reasoning_content, msg.reasoning_content);
        for (size_t i = 0; res && i < msg.tool_calls.size(); ++i) {
            res = begins(next.tool_calls[i].name, msg.tool_calls[i].name) &&
                  begins(next.tool_calls[i].arguments, msg.tool_calls[i].arguments);
        }
        return res;
    }

    void end(std::vector<std::string> & deltas) {
        common_chat_msg next;
        if (!parse_whole(next) || !is_more(next)) {
            next              = msg;
            const bool thinks = msg.content.empty() && msg.tool_calls.empty() && !msg.reasoning_content.empty();
            (thinks ? next.reasoning_content : next.content) += text.substr(n_read());
        }
        say(std::move(next), deltas);
    }

    // The message of a whole text, and what stands behind it; false where it is not whole: upstream's own call takes
    // what has begun for that, and holds back what might become a call.
    bool parse_whole(common_chat_msg & res) {
        if (params.parser.empty()) {
            return false;
        }
        common_peg_parse_context ctx(params.generation_prompt + text);
        const auto               result = params.parser.parse(ctx);
        if (!result.success()) {
            return false;
        }
        std::unique_ptr<common_chat_peg_mapper> mapper;
        switch (params.format) {
            case COMMON_CHAT_FORMAT_PEG_GEMMA4:
                mapper = std::make_unique<common_chat_peg_gemma4_mapper>(res);
                break;
            case COMMON_CHAT_FORMAT_PEG_MINIMAX_M3:
                mapper = std::make_unique<common_chat_peg_minimax_m3_mapper>(res);
                break;
            default:
                mapper = std::make_unique<common_chat_peg_mapper>(res);
                break;
        }
        mapper->from_ast(ctx.ast, result);
        res.content += ctx.input.substr(result.end);
        res.role = "assistant";
        res.set_tool_call_ids(ids, make_call_id);
        return true;
    }

    // how much of the text is in the message
    size_t n_read() {
        for (size_t n = n_said_before; n < n_said; ++n) {
            try {
                if (parse(text.substr(0, n), /*is_partial =*/true) == msg) {
                    return n;
                }
            } catch (const std::runtime_error &) { // a shorter text may be of no form
            }
        }
        return n_said;
    }
};

void register_chat_parser(py::module_ & m) {
    py::class_<py_chat_parser>(m, "ChatParser")
        .def(py::init<const py_chat_prompt &>(), py::arg("prompt"))
        .def("update", &py_chat_parser::update, py::arg("added"), py::arg("is_last"))
        .def("message", &py_chat_parser::message);
}
