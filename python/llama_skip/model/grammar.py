"""Grammars for `grammar=`: GBNF text, or one made from a JSON schema."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llama_skip import _core
from llama_skip.model.schema import check_schema


class LlamaGrammar(str):
    """A GBNF text; wherever a grammar is taken, a plain str will do as well.

    The constructors have llama-cpp-python's names and ignore `verbose`, as it does.
    """

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:
        """Return the grammar of a GBNF text; llama.cpp checks it when it is used."""
        return cls(grammar)

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], verbose: bool = True) -> LlamaGrammar:
        """Return the grammar of a GBNF file.

        Raises:
            FileNotFoundError: no such file.
        """
        return cls(Path(file).read_text(encoding="utf-8"))

    @classmethod
    def from_json_schema(cls, json_schema: str | Mapping[str, Any], verbose: bool = True) -> LlamaGrammar:
        """Return the grammar of the JSON texts that a schema allows, by llama.cpp's json_schema_to_grammar.

        Raises:
            ValueError: no JSON, or a schema that llama.cpp cannot express.
        """
        text = json_schema if isinstance(json_schema, str) else json.dumps(json_schema)
        schema: Any = None
        with suppress(ValueError, RecursionError):  # the converter says it better
            schema = json.loads(text)
        check_schema(schema)
        return cls(_core.json_schema_to_grammar(text))
