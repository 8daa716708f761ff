"""JSON schemas that llama.cpp's converter would follow without an end."""

from __future__ import annotations

from typing import Any

MOST_REFERENCES = 1000


def check_schema(schema: object) -> None:
    """Look at the references within a schema, "#/...".

    Raises:
        ValueError: one that leads back to itself, or more than the converter can follow.
    """
    referring: list[dict[str, Any]] = []
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            referring += [node] if isinstance(node.get("$ref"), str) else []
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    if len(referring) > MOST_REFERENCES:
        raise ValueError(f"JSON schema: nested too deeply, {len(referring)} references")
    for first in referring:
        seen: set[str] = set()
        node = first
        while isinstance(node, dict) and isinstance(reference := node.get("$ref"), str):
            if reference in seen:
                raise ValueError(f"JSON schema: {reference!r} refers to itself")
            seen.add(reference)
            node = _target(schema, reference)


def _target(schema: Any, reference: str) -> Any:
    node = schema
    for word in reference.removeprefix("#").split("/")[1:]:
        word = word.replace("~1", "/").replace("~0", "~")
        node = node.get(word) if isinstance(node, dict) else None
    return node
