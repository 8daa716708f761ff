"""Chat completions: llama.cpp's templates make the prompt, its parsers read the answer."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llama_skip import _core
from llama_skip.model.schema import check_schema
from llama_skip.openai import results
from llama_skip.openai.completion import Request, generated_pieces, stream_logprobs
from llama_skip.openai.pieces import Piece
from llama_skip.openai.results import ChatCompletion, ChatCompletionChunk

Message = Mapping[str, Any]

# llama-cpp-python's names of formats that llama.cpp has under another one
FORMATS = {"llama-2": "llama2", "llama-3": "llama3", "mistral-instruct": "mistral-v1"}


class Format(NamedTuple):
    """A chat template: Jinja source, or the name of one of llama.cpp's own; empty: the model's."""

    source: str
    is_jinja: bool


def chat_format(name: str | None, template: str | None) -> Format:
    """Return the template that the arguments of `Llama` name.

    Raises:
        ValueError: both were given, an unknown name, or a template that llama.cpp cannot parse.
    """
    if name is not None and template is not None:
        raise ValueError("chat_format, chat_template: give one of them")
    if template is not None:
        _core.check_chat_template(template)
        return Format(template, True)
    if name is None or name == "chat_template.default":
        return Format("", True)
    known = _core.builtin_templates()
    if (own := FORMATS.get(name, name)) not in known:
        raise ValueError(f"chat_format: {name!r} is not one of {', '.join(sorted({*known, *FORMATS}))}")
    return Format(own, False)


def request_json(
    messages: Sequence[Message],
    *,
    functions: Sequence[Message] | None,
    function_call: str | Message | None,
    tools: Sequence[Message] | None,
    tool_choice: str | Message | None,
    response_format: Message | None,
    grammar: str | None,
    template_options: Mapping[str, Any] | None,
    reasoning_format: str,
) -> dict[str, Any]:
    """Return what `_core.ChatTemplates.apply` takes; see `Llama.create_chat_completion` for the arguments.

    Raises:
        ValueError: no message, options that exclude each other, or an unknown tool or format.
    """
    if not messages:
        raise ValueError("messages: empty")
    if functions is not None:
        tools = [{"type": "function", "function": function} for function in functions]
        tool_choice = function_call if isinstance(function_call, str | None) else {"function": function_call}
    request: dict[str, Any] = {"messages": list(messages), "reasoning_format": reasoning_format}
    if tools:
        request |= _tool_request(list(tools), tool_choice)
    elif isinstance(tool_choice, Mapping) or tool_choice == "required":
        raise ValueError("tool_choice: there are no tools")
    schema = response_schema(response_format)
    if schema is not None and grammar:
        raise ValueError("response_format, grammar: give one of them")
    if schema is not None:
        request["json_schema"] = schema
    if grammar:
        request["grammar"] = grammar
    if template_options:
        request["chat_template_kwargs"] = dict(template_options)
    return request


def _tool_request(tools: list[Message], choice: str | Message | None) -> dict[str, Any]:
    if isinstance(choice, Mapping):
        name = (choice.get("function") or {}).get("name")
        tools = [tool for tool in tools if (tool.get("function") or {}).get("name") == name]
        if not tools:
            raise ValueError(f"Tool choice '{name}' not found in tools.")
        choice = "required"
    for tool in tools:
        check_schema((tool.get("function") or {}).get("parameters"))
    return {"tools": tools, "tool_choice": choice or "auto"}


def response_schema(response_format: Message | None) -> Mapping[str, Any] | None:
    """Return the JSON schema of an OpenAI response_format, None for plain text.

    Raises:
        ValueError: another type than text, json_object and json_schema.
    """
    kind = (response_format or {}).get("type", "text")
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        schema = response_format.get("schema")
    elif kind == "json_schema":
        schema = (response_format.get("json_schema") or {}).get("schema")
    else:
        raise ValueError(f"response_format: type {kind!r} is not one of text, json_object, json_schema")
    check_schema(schema)
    return schema or {"type": "object"}


def apply(templates: _core.ChatTemplates, request: Mapping[str, Any]) -> _core.ChatPrompt:
    """Return the prompt of a request.

    Raises:
        ValueError: messages, tools or a schema that llama.cpp or the template does not take.
        TypeError: something that is no JSON.
    """
    return templates.apply(json.dumps(request))


def forced_tool(request: Mapping[str, Any], prompt: _core.ChatPrompt) -> str | None:
    """Return the tool whose arguments the answer has to be, where the template itself cannot ask for a call.

    Raises:
        ValueError: a call is required, and it is open of which tool.
    """
    if request.get("tool_choice") != "required" or prompt.grammar:
        return None
    names = [tool["function"]["name"] for tool in request["tools"]]
    if len(names) > 1:
        raise ValueError("tool_choice: this chat template knows no tools, name the one to call")
    name: str = names[0]
    return name


def arguments_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request for the arguments of the only tool of `request`, as JSON."""
    schema = request["tools"][0]["function"].get("parameters") or {"type": "object"}
    rest = {key: value for key, value in request.items() if key not in ("tools", "tool_choice")}
    return {**rest, "json_schema": schema}


def stream(
    request: Request, prompt: _core.ChatPrompt, *, tool: str | None, is_function: bool
) -> Iterator[ChatCompletionChunk]:
    """Yield an answer in pieces: first the role, then its growth, last an empty delta and the reason.

    Args:
        request: what generates.
        prompt: its prompt.
        tool: the tool whose arguments the whole answer is, if it is that.
        is_function: also give the first call in OpenAI's older form.
    """
    make = _chunk_maker(request.name)
    yield make({"role": "assistant"}, None, None)
    read = _arguments_reader(tool) if tool else _reader(_core.ChatParser(prompt))
    reason: str | None = None
    has_calls = False
    waiting: list[dict[str, Any]] = []  # of tokens that no delta was made of yet
    for piece, logprobs in stream_logprobs(request, generated_pieces(request)):
        waiting += _chat_logprobs(logprobs)
        for delta in read(piece):
            if "tool_calls" in delta:
                has_calls = True
                if is_function:
                    delta["function_call"] = delta["tool_calls"][0]["function"]
            yield make(delta, _content(waiting), None)
            waiting = []
        reason = piece.finish_reason
    yield make({}, _content(waiting), _finish_reason(reason, has_calls, is_function))


def whole(
    request: Request, prompt: _core.ChatPrompt, *, tool: str | None, is_function: bool
) -> ChatCompletion:
    """Return an answer when it has ended; nothing else uses the context meanwhile. Arguments as above."""
    with request.history.lock:
        parts = list(stream_logprobs(request, generated_pieces(request)))
    last = parts[-1][0]
    if tool:
        text = "".join(piece.text for piece, _ in parts)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None,
            "tool_calls": [_call(tool, text.lstrip())],
        }
    else:
        message = _message(_core.ChatParser(prompt), [piece for piece, _ in parts])
    if is_function and "tool_calls" in message:
        message["function_call"] = message["tool_calls"][0]["function"]
    first = results.chunk_maker(request.name)("", None, None)
    found = [entry for _, logprobs in parts for entry in _chat_logprobs(logprobs)]
    return {
        "id": "chat" + first["id"],
        "object": "chat.completion",
        "created": first["created"],
        "model": first["model"],
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None if request.n_top is None else {"content": found, "refusal": None},
                "finish_reason": _finish_reason(last.finish_reason, "tool_calls" in message, is_function),
            }
        ],
        "usage": results.usage(len(request.prompt), last.n_tokens),
    }


def _call(name: str | None, arguments: str, call_id: str | None = None) -> dict[str, Any]:
    return {
        "id": call_id or f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _arguments_reader(tool: str) -> Callable[[Piece], list[dict[str, Any]]]:
    """Return what makes the deltas of one tool call from pieces of its arguments."""
    call_id = _call(tool, "")["id"]
    names: list[str | None] = [tool]

    def read(piece: Piece) -> list[dict[str, Any]]:
        text = piece.text.lstrip() if names else piece.text
        if not text:
            return []
        call = _call(names.pop() if names else None, text, call_id)
        return [{"tool_calls": [{"index": 0, **call}]}]

    return read


def _reader(parser: _core.ChatParser) -> Callable[[Piece], list[dict[str, Any]]]:
    """Return what makes deltas with llama.cpp's parser."""
    return lambda piece: [json.loads(d) for d in parser.update(piece.text, piece.finish_reason is not None)]


def _message(parser: _core.ChatParser, pieces: Sequence[Piece]) -> dict[str, Any]:
    """Return what all deltas together say."""
    for piece in pieces:
        parser.update(piece.text, piece.finish_reason is not None)
    message: dict[str, Any] = {"content": "", **json.loads(parser.message())}
    if "tool_calls" in message:
        message["content"] = message["content"] or None
    return message


def _finish_reason(reason: str | None, has_calls: bool, is_function: bool) -> str:
    if has_calls and reason == "stop":
        return "function_call" if is_function else "tool_calls"
    return reason or "length"


def _content(entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    return {"content": entries, "refusal": None} if entries else None


def _chat_logprobs(logprobs: results.CompletionLogprobs | None) -> list[dict[str, Any]]:
    if logprobs is None:
        return []
    rows = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
    return [
        {
            "token": token,
            "bytes": None,
            "logprob": logprob,
            "top_logprobs": [
                {"token": other, "logprob": p, "bytes": None} for other, p in (top or {}).items()
            ],
        }
        for token, logprob, top in rows
    ]


def _chunk_maker(
    name: str,
) -> Callable[[dict[str, Any], dict[str, Any] | None, str | None], ChatCompletionChunk]:
    first = results.chunk_maker(name)("", None, None)

    def make(
        delta: dict[str, Any], logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> ChatCompletionChunk:
        return {
            "id": "chat" + first["id"],
            "model": first["model"],
            "created": first["created"],
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}],
        }

    return make
