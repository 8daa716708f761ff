#include "bindings/generate/sampler-params.h"

#include "bindings/generate/prompt.h"

#include <pybind11/stl.h>

static void set_samplers(py_sampler_params & params, const std::vector<std::string> & names) {
    params.raw.samplers = common_sampler_types_from_names(names);
    if (params.raw.samplers.size() != names.size()) {
        throw std::invalid_argument("samplers: a name is not one of llama.cpp's --samplers");
    }
}

static void set_grammar(py_sampler_params & params, const std::string & gbnf) {
    params.raw.grammar = gbnf.empty() ? common_grammar() : common_grammar(COMMON_GRAMMAR_TYPE_USER, gbnf);
}

// what the answer to a chat prompt has to follow; as llama-server does
static void set_chat(py_sampler_params & params, const py_model & model, const py_chat_prompt & prompt) {
    const common_chat_params & chat = prompt.params;
    common_params_sampling &   raw  = params.raw;

    raw.preserved_tokens.insert(prompt.preserved.begin(), prompt.preserved.end());
    for (common_grammar_trigger trigger : chat.grammar_triggers) {
        const llama_token token =
            trigger.type == COMMON_GRAMMAR_TRIGGER_TYPE_WORD ? model.single_token(trigger.value) : LLAMA_TOKEN_NULL;
        if (token != LLAMA_TOKEN_NULL && raw.preserved_tokens.count(token) != 0) {
            trigger.type  = COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN;
            trigger.token = token;
        }
        raw.grammar_triggers.push_back(std::move(trigger));
    }
    if (!chat.grammar.empty()) {
        raw.grammar = common_grammar(COMMON_GRAMMAR_TYPE_TOOL_CALLS, chat.grammar);
    }
    raw.grammar_lazy      = chat.grammar_lazy;
    raw.generation_prompt = chat.generation_prompt;

    // a lazy grammar sleeps while the model thinks
    if (!chat.thinking_end_tags.empty()) {
        raw.reasoning_budget_start = common_tokenize(model.vocab(), chat.thinking_start_tag, false, true);
        for (const auto & tag : chat.thinking_end_tags) {
            raw.reasoning_budget_end.push_back(common_tokenize(model.vocab(), tag, false, true));
        }
        raw.reasoning_budget_forced = raw.reasoning_budget_end.front();
    }
}

static void set_logit_bias(py_sampler_params & params, const std::map<llama_token, float> & bias) {
    params.raw.logit_bias.clear();
    for (const auto & [token, value] : bias) {
        params.raw.logit_bias.push_back({ token, value });
    }
}

static std::map<llama_token, float> logit_bias(const py_sampler_params & params) {
    std::map<llama_token, float> res;
    for (const auto & b : params.raw.logit_bias) {
        res[b.token] = b.bias;
    }
    return res;
}

static std::vector<std::string> samplers(const py_sampler_params & params) {
    std::vector<std::string> res;
    for (const auto type : params.raw.samplers) {
        res.push_back(common_sampler_type_to_str(type));
    }
    return res;
}

void register_sampler_params(py::module_ & m) {
    using P = py_sampler_params;

    py::class_<P>(m, "SamplerParams")
        .def(py::init<>())
        .RAW_FIELD(P, uint32_t, seed)
        .RAW_FIELD(P, int32_t, min_keep)
        .RAW_FIELD(P, int32_t, top_k)
        .RAW_FIELD(P, float, top_p)
        .RAW_FIELD(P, float, min_p)
        .RAW_FIELD(P, float, typ_p)
        .RAW_FIELD(P, float, temp)
        .RAW_FIELD(P, int32_t, penalty_last_n)
        .RAW_FIELD(P, float, penalty_repeat)
        .RAW_FIELD(P, float, penalty_freq)
        .RAW_FIELD(P, float, penalty_present)
        .RAW_FIELD(P, int32_t, mirostat)
        .RAW_FIELD(P, float, mirostat_tau)
        .RAW_FIELD(P, float, mirostat_eta)
        .def_property("samplers", samplers, set_samplers)
        .def_property("logit_bias", logit_bias, set_logit_bias)
        .def("set_chat", set_chat, py::arg("model"), py::arg("prompt"))
        .def_property(
            "grammar", [](const P & p) { return common_grammar_value(p.raw.grammar); }, set_grammar);
}
