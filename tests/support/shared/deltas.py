"""Shared by tests of several files."""

from __future__ import annotations

from typing import Any


def joined(chunks: list[Any]) -> dict[str, Any]:
    """The message that the deltas of a stream make."""
    message: dict[str, Any] = {}
    for chunk in chunks:
        delta = chunk["choices"][0]["delta"]
        for key in ("role", "content", "reasoning_content"):
            if delta.get(key) is not None:
                message[key] = message.get(key, "") + delta[key]
        for call in delta.get("tool_calls", []):
            calls = message.setdefault("tool_calls", [])
            if call["index"] == len(calls):
                calls.append(
                    {"id": call["id"], "type": "function", "function": {"name": "", "arguments": ""}}
                )
            function = calls[call["index"]]["function"]
            function["name"] += call["function"]["name"] or ""
            function["arguments"] += call["function"]["arguments"]
    return message
