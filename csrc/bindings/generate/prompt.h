#pragma once

#include "bindings/model/model.h"

#include "chat.h"

// A prompt made of messages, and what is needed to constrain and to read the answer.
struct py_chat_prompt {
    common_chat_params      params;
    common_reasoning_format reasoning_format = COMMON_REASONING_FORMAT_NONE;

    bool parse_tool_calls = false;

    std::vector<llama_token> preserved; // control tokens that are part of the answer's text
};

// chat templates, tool calls and JSON schemas
void register_chat(py::module_ & m);
