"""Chat completions of the class Llama: prompts, schemas, tools, and what the parsers make of an answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.shared.deltas import joined
from support.shared.ids import stable

MESSAGES = [{"role": "user", "content": "Name a town."}]
DEFAULT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a town.",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "maxLength": 12}, "days": {"type": "integer"}},
            "required": ["town", "days"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}
# of the form that Hermes and Qwen 2.5 were trained with
HERMES = """{%- if tools %}<|im_start|>system
Tools: <tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>
For each call return <tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}{%- for message in messages %}{%- if message.tool_calls %}<|im_start|>assistant
{%- for call in message.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% elif message.role == "tool" %}<|im_start|>user
<tool_response>{{ message.content }}</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}{%- endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
THINKING = """{%- for message in messages %}<|im_start|>{{ message.role }}
{% set content = message.content %}{%- if '</think>' in content %}\
{%- set content = content.split('</think>')[-1] %}{%- endif %}{{ content }}<|im_end|>
{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{%- endif %}"""
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"town": "Oslo", "days": 3}}\n</tool_call>'


def says(llm: Any, text: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A logits processor that makes the model write `text` and end."""
    wanted = [*llm.tokenize(text.encode(), add_bos=False), llm.tokenize(b"<|im_end|>", False, True)[0]]
    n_prompt: list[int] = []

    def force(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if not n_prompt:
            n_prompt.append(len(ids))
        token = wanted[len(ids) - n_prompt[0]]
        scores[:] = -1e9
        scores[token] = 0
        return scores

    return force


def prompt_of(llm: Any, messages: Any = MESSAGES, **kwargs: Any) -> str:
    n = llm.create_chat_completion(messages, max_tokens=1, **kwargs)["usage"]["prompt_tokens"]
    text: bytes = llm.detokenize(llm.input_ids[:n].tolist(), special=True)
    return text.decode()


def test_the_prompt_is_the_models_template(make: Any) -> None:
    llm = make()
    system = f"<|im_start|>system\n{DEFAULT}<|im_end|>\n"
    user = "<|im_start|>user\nName a town.<|im_end|>\n"
    assert prompt_of(llm) == f"{system}{user}<|im_start|>assistant\n"
    own = [{"role": "system", "content": "Be brief."}, *MESSAGES, {"role": "assistant", "content": "Oslo"}]
    messages = [*own, {"role": "user", "content": [{"type": "text", "text": "And one more."}]}]
    expected = (
        f"<|im_start|>system\nBe brief.<|im_end|>\n{user}<|im_start|>assistant\nOslo<|im_end|>\n"
        "<|im_start|>user\nAnd one more.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt_of(llm, messages) == expected
    assert llm.input_ids[0] == llm.token_bos()  # a control token, not its text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chatml", "<|im_start|>user\nName a town.<|im_end|>\n<|im_start|>assistant\n"),
        ("vicuna", "USER: Name a town.\nASSISTANT:"),
        ("zephyr", "<|user|>\nName a town.<|endoftext|>\n<|assistant|>\n"),
        (
            "llama-3",
            "<|start_header_id|>user<|end_header_id|>\n\nName a town.<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ],
)
def test_names_of_formats(make: Any, name: str, expected: str) -> None:
    assert prompt_of(make(chat_format=name)) == expected
    assert make(chat_format="chat_template.default").skip_layers == ()


def test_a_template_and_its_options(make: Any) -> None:
    llm = make(chat_template="{% for m in messages %}[{{ m.content }}]{% endfor %}{{ mood }}")
    assert prompt_of(llm, template_options={"mood": "happy"}) == "[Name a town.]happy"
    assert prompt_of(llm, template_options={"mood": 3}) == "[Name a town.]3"
    thinking = make(chat_template=THINKING)
    assert prompt_of(thinking).endswith("<|im_start|>assistant\n")
    off = prompt_of(thinking, template_options={"enable_thinking": False})
    assert off.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_an_answer_is_the_completion_of_its_prompt(make: Any) -> None:
    llm = make()
    answer = llm.create_chat_completion(MESSAGES, temperature=0, max_tokens=8)
    prompt = llm.tokenize(prompt_of(llm).encode(), True, True)
    completion = make()(prompt, temperature=0, max_tokens=8)
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": completion["choices"][0]["text"],
    }
    assert answer["usage"] == completion["usage"]
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["finish_reason"] == completion["choices"][0]["finish_reason"]
    chunks = list(llm.create_chat_completion(MESSAGES, temperature=0, max_tokens=8, stream=True))
    assert joined(chunks) == answer["choices"][0]["message"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant"}
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert len({c["id"] for c in chunks}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_stop(make: Any, stream: bool) -> None:
    llm = make()
    kwargs = {"logits_processor": [says(llm, "One town is Oslo, another is Rome.")], "stream": stream}
    found = llm.create_chat_completion(MESSAGES, stop=["other", ", another"], **kwargs)
    chunks = list(found) if stream else []
    message = joined(chunks) if stream else found["choices"][0]["message"]
    assert message["content"] == "One town is Oslo"
    assert (chunks[-1] if stream else found)["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(make: Any, stream: bool) -> None:
    llm = make()
    kwargs = {"temperature": 0, "max_tokens": 5, "logprobs": True, "top_logprobs": 2, "stream": stream}
    found = llm.create_chat_completion(MESSAGES, **kwargs)
    parts = [c["choices"][0] for c in found] if stream else found["choices"]
    content = [entry for part in parts if part["logprobs"] for entry in part["logprobs"]["content"]]
    prompt = llm.tokenize(prompt_of(llm).encode(), True, True)
    expected = make()(prompt, temperature=0, max_tokens=5, logprobs=2)["choices"][0]["logprobs"]
    assert [e["token"] for e in content] == expected["tokens"]
    assert [e["logprob"] for e in content] == pytest.approx(expected["token_logprobs"], abs=1e-3)
    for entry, top in zip(content, expected["top_logprobs"], strict=True):
        assert {t["token"] for t in entry["top_logprobs"]} == set(top)


def test_logprobs_of_tokens_that_the_parser_holds_back(make: Any) -> None:
    llm = make(chat_template=HERMES)
    kwargs = {"tools": [WEATHER], "logprobs": True, "logits_processor": [says(llm, "I look.\n" + CALL)]}
    chunks = llm.create_chat_completion(MESSAGES, stream=True, **kwargs)
    given = [c["choices"][0]["logprobs"] for c in chunks]
    found = [entry["token"] for logprobs in given if logprobs for entry in logprobs["content"]]
    assert "".join(found) == "I look.\n" + CALL


SCHEMA = {
    "type": "object",
    "properties": {"town": {"enum": ["Oslo", "Rome"]}, "people": {"type": "integer", "maximum": 99}},
    "required": ["town", "people"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_object", "schema": SCHEMA},
        {"type": "json_schema", "json_schema": {"name": "town", "schema": SCHEMA}},
    ],
    ids=["json_object", "json_schema"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_is_followed(make: Any, response_format: dict[str, Any], stream: bool) -> None:
    llm = make()
    kwargs = {"response_format": response_format, "temperature": 1.5, "seed": 3, "stream": stream}
    found = llm.create_chat_completion(MESSAGES, max_tokens=60, **kwargs)
    message = joined(list(found)) if stream else found["choices"][0]["message"]
    value = json.loads(message["content"])
    assert set(value) == {"town", "people"}
    assert value["town"] in ("Oslo", "Rome")
    assert isinstance(value["people"], int)
    assert value["people"] <= 99


def test_any_json_object(make: Any) -> None:
    llm = make()
    # the grammar decides, not the model: what it wants to say is no JSON
    best = llm.create_chat_completion(
        MESSAGES, response_format={"type": "json_object"}, temperature=0, max_tokens=120,
        logit_bias={token: 5.0 for token in llm.tokenize(b'"}', add_bos=False)},
    )  # fmt: skip
    content = best["choices"][0]["message"]["content"]
    assert content.lstrip().startswith("{")
    if best["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(content), dict)
    plain = llm.create_chat_completion(
        MESSAGES, response_format={"type": "text"}, temperature=0, max_tokens=5
    )
    assert not plain["choices"][0]["message"]["content"].startswith("{")


def test_a_grammar(make: Any) -> None:
    found = make().create_chat_completion(MESSAGES, grammar='root ::= "Oslo" | "Rome"', max_tokens=9)
    assert found["choices"][0]["message"]["content"] in ("Oslo", "Rome")
    assert found["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "choice", ["auto", "required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_tool_call_is_parsed(make: Any, choice: Any, stream: bool) -> None:
    llm = make(chat_template=HERMES)
    kwargs = {"tools": [WEATHER, TIME], "tool_choice": choice, "logits_processor": [says(llm, CALL)]}
    found = llm.create_chat_completion(MESSAGES, stream=stream, **kwargs)
    chunks = list(found) if stream else []
    message = joined(chunks) if stream else found["choices"][0]["message"]
    (call,) = message["tool_calls"]
    assert call["type"] == "function"
    assert call["id"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"town": "Oslo", "days": 3}
    assert not message.get("content")
    assert (chunks[-1] if stream else found)["choices"][0]["finish_reason"] == "tool_calls"


def test_text_before_a_call_and_no_call(make: Any) -> None:
    llm = make(chat_template=HERMES)
    for stream in (False, True):
        found = llm.create_chat_completion(
            MESSAGES, tools=[WEATHER], logits_processor=[says(llm, "I look.\n" + CALL)], stream=stream
        )
        message = joined(list(found)) if stream else found["choices"][0]["message"]
        assert message["content"].strip() == "I look."
        assert message["tool_calls"][0]["function"]["name"] == "get_weather"
    for choice in ("auto", "none"):
        plain = llm.create_chat_completion(
            MESSAGES, tools=[WEATHER], tool_choice=choice, logits_processor=[says(llm, "It rains.")]
        )["choices"][0]
        assert plain["message"] == {"role": "assistant", "content": "It rains."}
        assert plain["finish_reason"] == "stop"


def test_the_tools_and_their_results_are_in_the_prompt(make: Any) -> None:
    llm = make(chat_template=HERMES)
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"days": 3}'},
    }
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    text = prompt_of(llm, messages, tools=[WEATHER])
    assert '"name": "get_weather"' in text
    assert "The weather of a town." in text
    assert '{"name": "get_weather", "arguments": {"days": 3}}' in text.replace(
        '"{\\"days\\": 3}"', '{"days": 3}'
    )
    assert "<tool_response>rain</tool_response>" in text


@pytest.mark.parametrize("stream", [False, True])
def test_a_required_call_follows_the_tools_schema(make: Any, stream: bool) -> None:
    """The processor only begins the call, which text may come before: the grammar makes it."""
    llm = make(chat_template=HERMES)
    begin = says(llm, "<tool_call>")
    n_called = 0

    def begins(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        nonlocal n_called
        n_called += 1
        return begin(ids, scores) if n_called <= len(llm.tokenize(b"<tool_call>", add_bos=False)) else scores

    kwargs = {"tools": [WEATHER], "tool_choice": "required", "logits_processor": [begins], "temperature": 0}
    found = llm.create_chat_completion(MESSAGES, max_tokens=80, stream=stream, **kwargs)
    message = joined(list(found)) if stream else found["choices"][0]["message"]
    call = message["tool_calls"][0]  # the model may go on with another one
    assert call["function"]["name"] == "get_weather"
    arguments = json.loads(call["function"]["arguments"])
    assert isinstance(arguments["town"], str)
    assert isinstance(arguments["days"], int)


FORCED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_tool_with_a_template_that_knows_none(make: Any, stream: bool) -> None:
    llm = make()
    kwargs = {"tools": [WEATHER, TIME], "tool_choice": FORCED, "temperature": 0, "max_tokens": 80}
    found = llm.create_chat_completion(MESSAGES, stream=stream, **kwargs)
    chunks = list(found) if stream else []
    message = joined(chunks) if stream else found["choices"][0]["message"]
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert call["id"]
    assert set(json.loads(call["function"]["arguments"])) == {"town", "days"}
    assert (chunks[-1] if stream else found)["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_the_older_form_of_tools(make: Any, stream: bool) -> None:
    llm = make()
    kwargs = {"functions": [WEATHER["function"]], "function_call": {"name": "get_weather"}, "temperature": 0}
    found = llm.create_chat_completion(MESSAGES, max_tokens=80, stream=stream, **kwargs)
    if stream:
        chunks = list(found)
        deltas = [c["choices"][0]["delta"].get("function_call") for c in chunks]
        name = "".join(d["name"] or "" for d in deltas if d)
        text = "".join(d["arguments"] for d in deltas if d)
        last = chunks[-1]
    else:
        called = found["choices"][0]["message"]["function_call"]
        name, text, last = called["name"], called["arguments"], found
    assert name == "get_weather"
    assert set(json.loads(text)) == {"town", "days"}
    assert last["choices"][0]["finish_reason"] == "function_call"


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts(make: Any, stream: bool) -> None:
    llm = make(chat_template=THINKING)
    text = "<think>\nA town in the north.\n</think>\n\nOslo"

    def answer(**kwargs: Any) -> dict[str, Any]:
        found = llm.create_chat_completion(
            MESSAGES, logits_processor=[says(llm, text)], stream=stream, **kwargs
        )
        return joined(list(found)) if stream else found["choices"][0]["message"]

    plain, split = answer(), answer(reasoning_format="deepseek")
    assert plain == {"role": "assistant", "content": text}
    assert split["reasoning_content"].strip() == "A town in the north."
    assert split["content"].strip() == "Oslo"


@pytest.mark.parametrize(
    ("kwargs", "error", "reason"),
    [
        ({"messages": []}, ValueError, "messages: empty"),
        ({"messages": [{"content": "x"}]}, ValueError, "role"),
        ({"messages": [{"role": "user"}]}, ValueError, "content"),
        ({"messages": [{"role": "user", "content": 3}]}, ValueError, "content"),
        ({"messages": ["x"]}, ValueError, "."),
        ({"messages": [{"role": "user", "content": object()}]}, TypeError, "JSON"),
        ({"tools": [{"type": "x"}]}, ValueError, "."),
        ({"tools": [{"type": "function", "function": {}}]}, ValueError, "."),
        ({"tools": [WEATHER], "tool_choice": "perhaps"}, ValueError, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"function": {"name": "x"}}}, ValueError, "'x' not found"),
        ({"tools": [{"type": "x"}], "tool_choice": {"function": {"name": "x"}}}, ValueError, "."),
        ({"tool_choice": "required"}, ValueError, "tool_choice: there are no tools"),
        ({"tools": [WEATHER, TIME], "tool_choice": "required"}, ValueError, "name the one to call"),
        ({"response_format": {"type": "xml"}}, ValueError, "response_format: type 'xml'"),
        ({"response_format": {"type": "json_object", "schema": {"type": "x"}}}, ValueError, "."),
        (
            {"response_format": {"type": "json_object", "schema": {"$ref": "#/$defs/none"}}},
            ValueError,
            ".",
        ),
        ({"response_format": {"type": "json_object"}, "grammar": 'root ::= "x"'}, ValueError, "give one"),
        ({"grammar": "root ::= missing"}, ValueError, "grammar"),
        ({"reasoning_format": "x"}, ValueError, "reasoning"),
        ({"template_options": {"x": object()}}, TypeError, "JSON"),
        ({"messages": [{"role": "user", "content": "x " * 600}]}, ValueError, "exceed context window"),
        ({"temperature": 0.1, "mirostat_mode": 3}, ValueError, "mirostat_mode"),
        ({"tfs_z": 1.0}, TypeError, "tfs_z is not supported, use instead: .*min_p"),
    ],
    ids=stable,
)
def test_bad_requests(tiny_chat: Any, kwargs: dict[str, Any], error: type[Exception], reason: str) -> None:
    kwargs = {"messages": MESSAGES, "max_tokens": 2, **kwargs}
    with pytest.raises(error, match=reason):
        tiny_chat.create_chat_completion(**kwargs)
    with pytest.raises(error, match=reason):
        list(tiny_chat.create_chat_completion(**kwargs, stream=True))
    assert tiny_chat.create_chat_completion(MESSAGES, max_tokens=1)["choices"]


@pytest.fixture(scope="module")
def tiny_chat(tiny: Any) -> Any:
    from llama_skip import Llama

    with Llama(tiny, n_threads=1, n_threads_batch=1, verbose=False) as llm:
        yield llm


def test_a_template_that_fails(make: Any) -> None:
    llm = make(chat_template="{{ raise_exception('no roles please') }}")
    with pytest.raises(ValueError, match="no roles please"):
        llm.create_chat_completion(MESSAGES)
    for bad in ("{% if %}", "{{ x"):
        with pytest.raises(ValueError, match="chat_template"):
            make(chat_template=bad)
    with pytest.raises(ValueError, match=r"chat_format: 'gibberish' is not one of .*chatml"):
        make(chat_format="gibberish")
    with pytest.raises(ValueError, match="give one of them"):
        make(chat_format="chatml", chat_template="x")
