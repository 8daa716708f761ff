"""Nothing that a user gives ends the process: each case has one of its own, which has to end well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.matrix.arch_files import Base, make, write
from support.metadata import annotated_copy

from comparison.builds import Build

BEGIN = """
import json, sys
import numpy as np
from llama_skip import Llama
model = sys.argv[1]
options = {"n_threads": 1, "n_threads_batch": 1, "verbose": False}
inf = float("inf")
def tried(f):
    try:
        return f()
    except Exception as err:
        return [type(err).__name__, str(err)]
"""


def outcome(program: str, model: Path) -> Any:
    """Return what a program prints last, as JSON."""
    command = [sys.executable, "-c", BEGIN + program, str(model)]
    env = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_attention_to_all_tokens_takes_them_at_once(tiny: Path) -> None:
    found = outcome(
        """
kwargs = {**options, "embedding": True, "pooling_type": 1, "attention_type": 1}
kwargs |= {"n_ctx": 2048, "n_batch": 2048}
one, two = (Llama(model, **kwargs, **more).embed("word " * 600) for more in ({}, {"n_ubatch": 2048}))
print(json.dumps([one, two]))
""",
        tiny,
    )
    assert found[0] == found[1] and len(found[0]) > 0


@pytest.mark.parametrize("arch", ["bert", "modern-bert", "t5encoder"])
def test_encoders_take_more_than_a_micro_batch(
    stock: Build, bases: dict[str, Base], tmp_path: Path, arch: str
) -> None:
    made = make(stock, tmp_path, bases, arch)
    found = outcome(
        """
found = []
for n_ubatch in (4, 64):
    llm = Llama(model, **options, n_ctx=64, n_batch=64, n_ubatch=n_ubatch, embedding=True, pooling_type=1)
    context = llm._history.context
    sequences = [np.arange(1, 12), np.arange(3, 9)]
    found.append([row.tolist() for row in context.embed(sequences)])
print(json.dumps(found))
""",
        write(tmp_path / "model.gguf", made.arch, made.metadata, made.tensors),
    )
    assert found[0] == found[1] and len(found[0]) == 2


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("'root ::= ' + '(' * 60000 + '\"a\"' + ')' * 60000", "nested too deeply"),
        (
            "'root ::= a0\\n' + ''.join(f'a{i} ::= a{i + 1}\\n' for i in range(10**5)) + 'a100000 ::= \"x\"'",
            "nested too deeply",
        ),
        ("'root ::= ' + '(' * 900 + '\"a\"' + ')' * 900", None),
        ("'root ::= \"' + '(' * 2000 + '\"'", None),
        ("'root ::= [' + '(' * 2000 + '] # ' + '(' * 2000", None),
    ],
    ids=["parentheses", "chain", "fewer", "quoted", "class and comment"],
)
def test_deep_grammars(tiny: Path, grammar: str, reason: str | None) -> None:
    found = outcome(
        f"""
llm = Llama(model, **options, n_ctx=64)
print(json.dumps(tried(lambda: llm("hi", grammar={grammar}, max_tokens=1)["object"])))
""",
        tiny,
    )
    assert found == "text_completion" if reason is None else found[0] == "ValueError" and reason in found[1]


def test_deep_schemas(tiny: Path) -> None:
    found = outcome(
        """
from llama_skip import LlamaGrammar
deep = '{"items":' * 50000 + "{}" + "}" * 50000
print(json.dumps(tried(lambda: LlamaGrammar.from_json_schema(deep))))
""",
        tiny,
    )
    assert found[0] == "ValueError" and "nested too deeply" in found[1]


@pytest.mark.parametrize("temperature", [0, 0.8, -1])
@pytest.mark.parametrize("grammar", [None, 'root ::= " yes"'])
def test_no_token_is_left(tiny: Path, temperature: float, grammar: str | None) -> None:
    found = outcome(
        f"""
def nothing(ids, scores):
    scores[:] = -inf
    return scores
llm = Llama(model, **options, n_ctx=64)
words = [t for t in range(llm.n_vocab()) if llm.detokenize([t])[:1] in (b" ", b"y")]
given = {{"temperature": {temperature}, "grammar": {grammar!r}, "max_tokens": 4}}
ask = lambda **more: tried(lambda: llm("Is water wet? Answer:", **given, **more)["object"])
found = [ask(logits_processor=[nothing]), ask(logit_bias=dict.fromkeys(range(llm.n_vocab()), -inf))]
found.append(ask(logit_bias=dict.fromkeys(words, -inf)))
found.append(llm("hi", max_tokens=2)["object"])
print(json.dumps(found))
""",
        tiny,
    )
    for kind, text in found[:2] if grammar is None else found[:3]:
        assert kind == "RuntimeError" and "no token is left" in text
    assert found[3] == "text_completion"  # the model is as good as before


@pytest.mark.parametrize("n", [0, 600, -1])
def test_counts_of_blocks(tiny: Path, n: int) -> None:
    found = outcome(
        f"""
overrides = {{"qwen3.block_count": {n}}}
load = lambda layers: tried(lambda: Llama(model, **options, kv_overrides=overrides, skip_layers=layers))
print(json.dumps([load(None), load("1")]))
""",
        tiny,
    )
    for kind, text in found:
        assert (kind, f"qwen3.block_count is {n}," in text) == ("ValueError", True)


def test_a_file_with_too_many_blocks(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    annotated_copy(tiny, copy, {"qwen3.block_count": 600})
    found = outcome("print(json.dumps(tried(lambda: Llama(model, **options))))", copy)
    assert found[0] in ("ModelLoadError", "ValueError") and "qwen3.block_count is 600" in found[1]


def test_what_failed_a_check_of_llama_cpp_is_closed(tiny: Path) -> None:
    found = outcome(
        """
llm, other = (Llama(model, **options, n_ctx=64) for _ in range(2))
found = [tried(lambda: llm._history.context.memory_seq_rm(999, 0, -1))]
found.append(tried(lambda: llm("hi", max_tokens=1)))
found.append(other("hi", max_tokens=1)["object"])
llm.close()
print(json.dumps(found))
""",
        tiny,
    )
    assert found[0][0] == "RuntimeError" and "a fault to report" in found[0][1] and "seq_id" in found[0][1]
    assert found[1][0] == "RuntimeError" and "is closed" in found[1][1]
    assert found[2] == "text_completion"
