"""Tool calls of every chat template that upstream ships: cut off, malformed or whole, streamed and not."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from llama_skip import Llama, _core
from llama_skip.openai import chat
from llama_skip.openai.pieces import Piece
from support.shared.deltas import joined

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(os.environ.get("LLAMA_SKIP_OURS_SOURCE") or ROOT / "vendor" / "llama.cpp")
TEMPLATES = sorted((SOURCE / "models" / "templates").glob("*.jinja"))
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "d",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}
REQUEST: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "tools": [TOOL]}
CALL = '{"name": "get_weather", "arguments": {"town": "Oslo"}}'
BAD = '{"name": "get_weather", "arguments": {"town": Oslo}}'
QWEN = "<tool_call>\n<function=get_weather>\n<parameter=town>\nOslo\n</parameter>\n</function>\n</tool_call>"
ANSWERS = [
    'Use JSON such as {"a": 1} in the body.',
    f"Let me look.\n<tool_call>\n{CALL}\n</tool_call>",
    f"Let me look.\n<tool_call>\n{BAD}\n</tool_call>",
    f"<tool_call>\n{CALL}\n</tool_call>\nI called it.",
    f"Let me look.\n<tool_call>\n{CALL[:30]}",
    f"{QWEN}\nI called it.",
    f"I look. {QWEN[:60]}",
    'Sure. [TOOL_CALLS]get_weather[ARGS]{"town": "Oslo"}',
    "Sure. [TOOL_CALLS]get_weather[CALL_I",
    CALL,
    BAD,
    "It is 3 <",
    "<thi",
    "<think>\nHm, a town.\n</think>\nIt rains.",
    "<think>\nHm, a to",
]
SYNTAX = {"name", "get_weather", "arguments", "town", "tool_call", "TOOL_CALLS", "ARGS", "think", "parameter"}
SYNTAX |= {"function", "CALL_I", "parameters"}


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    with Llama(tiny, vocab_only=True, verbose=False) as llm:
        yield llm._model


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_nothing_of_an_answer_is_lost(model: Any, template: Path) -> None:
    try:
        templates = _core.ChatTemplates(model, template.read_text(), True)
        prompts = [
            chat.apply(templates, {**REQUEST, "tool_choice": "auto", "reasoning_format": reasoning})
            for reasoning in ("none", "deepseek")
        ]
    except ValueError as err:
        pytest.skip(f"no template for tools: {err}"[:100])
    for prompt in prompts:
        for answer in ANSWERS:
            for size in (1, 5, 1000):
                texts = [answer[i : i + size] for i in range(0, len(answer), size)]
                pieces = [*(Piece(text, 1, None) for text in texts), Piece("", 1, "stop")]
                whole = chat._message(_core.ChatParser(prompt), pieces)
                read = chat._reader(_core.ChatParser(prompt))
                deltas = [delta for piece in pieces for delta in read(piece)]
                found = joined([{"choices": [{"delta": delta}]} for delta in deltas])
                for message in (whole, found):
                    message.pop("role", None)
                    for call in message.get("tool_calls", []):
                        assert call.pop("id")
                assert found == {key: value for key, value in whole.items() if value}, (answer, size)
                said = repr(found)
                lost = {word for word in re.findall(r"\w+", answer) if word not in said} - SYNTAX
                assert not lost, (answer, size, found)
