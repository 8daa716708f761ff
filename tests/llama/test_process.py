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


@pytest.mark.parametrize("key", ["expert_count", "expert_used_count"])
@pytest.mark.parametrize("n", [0, 1000, -1])
def test_expert_counts_out_of_range(
    stock: Build, bases: dict[str, Base], tmp_path: Path, key: str, n: int
) -> None:
    made = make(stock, tmp_path, bases, "llama-moe")
    found = outcome(
        f"""
overrides = {{"llama.{key}": {n}}}
def load(layers):
    llm = Llama(model, **options, kv_overrides=overrides, skip_layers=layers, n_ctx=64)
    llm.eval([1, 2])
    return "computed"
print(json.dumps([tried(lambda: load(None)), tried(lambda: load("1"))]))
""",
        write(tmp_path / "model.gguf", made.arch, made.metadata, made.tensors),
    )
    for result in found:
        assert result == "computed" or result[0] in ("ValueError", "ModelLoadError"), result
        assert result == "computed" or key in result[1] or "expert" in result[1], result


@pytest.mark.parametrize(
    "work",
    [
        "llm('Once upon a time', max_tokens=None)",
        "Llama(model, **options, n_ctx=256)('Once', max_tokens=9)",
        "list(llm('Once', max_tokens=99, stream=True))",
    ],
)
def test_a_daemon_thread_when_the_interpreter_ends(tiny: Path, work: str) -> None:
    program = f"""
import threading, time
llm = Llama(model, **options, n_ctx=2048)
def go():
    while True:
        {work}
for _ in range(1 if "llm" in {work!r} else 3):
    threading.Thread(target=go, daemon=True).start()
time.sleep(0.7)
"""
    command = [sys.executable, "-c", BEGIN + program, str(tiny)]
    for _ in range(4):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("end", ["thread.join()", "llm.close()"])
def test_handlers_at_exit_may_wait_for_a_daemon_thread(tiny: Path, end: str) -> None:
    program = f"""
import atexit, sys, threading, time
must_stop = threading.Event()
def finish():
    must_stop.set()
    {end}
atexit.register(finish)
import numpy as np
from llama_skip import Llama
llm = Llama(sys.argv[1], n_threads=1, n_threads_batch=1, verbose=False, n_ctx=2048)
def go():
    while not must_stop.is_set():
        for _ in llm("Once", max_tokens=64, stream=True):
            pass
thread = threading.Thread(target=go, daemon=True)
thread.start()
time.sleep(0.5)
"""
    command = [sys.executable, "-c", program, str(tiny)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_texts_templates_and_schemas_that_upstream_recurses_over(tiny: Path) -> None:
    found = outcome(
        """
refs = {f"a{i}": {"type": "array", "items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(20000)}
schema = {"$defs": {**refs, "a20000": {"type": "string"}}, "$ref": "#/$defs/a0"}
llm = Llama(model, **options, n_ctx=256)
messages = [{"role": "user", "content": "a"}]
chat = lambda llm, **kwargs: llm.create_chat_completion(messages, max_tokens=1, **kwargs)
found = [tried(lambda: chat(llm, response_format={"type": "json_object", "schema": schema}))]
tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
found.append(tried(lambda: chat(llm, tools=[tool])))
deep = ["{{ " + "(" * 4000 + "1" + ")" * 4000 + " }}", "{% if 1 %}" * 50000 + "a" + "{% endif %}" * 50000]
for template in deep:
    found.append(tried(lambda: chat(Llama(model, **options, n_ctx=256, chat_template=template))["object"]))
pre = {"tokenizer.ggml.pre": "gpt-4o"}
other = Llama(model, **options, vocab_only=True, kv_overrides=pre)
found.append(tried(lambda: len(other.tokenize(b"a" * 300000))))
none = Llama(model, **options, vocab_only=True, kv_overrides={"tokenizer.ggml.model": "no_vocab"})
found += [tried(lambda: none.tokenize(b"hi")), tried(lambda: none.detokenize([5]))]
loop = {"definitions": {"a": {"$ref": "#/definitions/a"}}, "allOf": [{"$ref": "#/definitions/a"}]}
found.append(tried(lambda: chat(llm, response_format={"type": "json_object", "schema": loop})))
rules = [f"r{i} ::= " + "(" * 900 + f"r{i + 1}" + ")" * 900 for i in range(300)]
grammar = "\\n".join(["root ::= r0", *rules, 'r300 ::= "a"'])
found.append(tried(lambda: llm("hi", grammar=grammar, max_tokens=2)))
print(json.dumps(found))
""",
        tiny,
    )
    assert found[0][0] == "ValueError" and "nested too deeply" in found[0][1]
    assert found[1][0] == "ValueError" and "nested too deeply" in found[1][1]
    for result in found[2:4]:
        assert result == "chat.completion" or result[0] in ("ValueError", "RuntimeError"), result
    assert found[4] > 1000
    assert found[5] == found[6] == ["ValueError", "this model has no vocabulary"]
    assert found[7][0] == "ValueError" and "refers to itself" in found[7][1]
    assert found[8][0] == "ValueError" and "nested too deeply" in found[8][1]


@pytest.mark.parametrize("arch", ["bert", "gpt2-dense"])
def test_learned_positions_end(stock: Build, bases: dict[str, Base], tmp_path: Path, arch: str) -> None:
    made = make(stock, tmp_path, bases, arch)
    n_most = next(t.shape[0] for name, t in made.tensors.items() if name == "position_embd.weight")
    found = outcome(
        f"""
options |= {{"n_threads": 2, "n_threads_batch": 2, "n_ctx": 2 * {n_most}}}
tokens = [3 + i % 40 for i in range({n_most} + 5)]
if {arch!r} == "bert":
    llm = Llama(model, **options, embedding=True, pooling_type=1)
    print(json.dumps([llm._history.context.n_most, tried(lambda: llm._history.embed([tokens]))]))
else:
    llm = Llama(model, **options)
    print(json.dumps([{n_most}, tried(lambda: llm.eval(tokens))]))
""",
        write(tmp_path / "model.gguf", made.arch, made.metadata, made.tensors),
    )
    assert found[0] == n_most
    assert found[1][0] == "RuntimeError" and f"has {n_most} positions" in found[1][1]


def test_arguments_out_of_range(tiny: Path) -> None:
    found = outcome(
        """
small = {**options, "n_ctx": 64}
calls = [
    lambda: Llama(model, **{**small, "n_threads": 50000}),
    lambda: Llama(model, **small, pooling_type=4, embedding=True),
    lambda: Llama(model, **small, kv_overrides={"qwen3.attention.layer_norm_rms_epsilon": -1.0}),
    lambda: Llama(model, **small, skip_layers="1\\0,2"),
    lambda: Llama(model + "\\0junk", **small),
    lambda: Llama(model, **small)("hi", grammar='root ::= "a"\\0((', max_tokens=1),
    lambda: Llama(model, **small, logits_all=True).logits([1, 2], first=-1),
]
print(json.dumps([tried(call) for call in calls]))
""",
        tiny,
    )
    reasons = [
        "n_threads: 50000",
        "does not rank",
        "epsilon is -1.0",
        "has a NUL",
        "with a NUL",
        "has a NUL",
        "first: -1",
    ]
    for (kind, text), reason in zip(found, reasons, strict=True):
        assert kind in ("ValueError", "ArgumentError") and reason in text, (kind, text)


def test_a_child_closes_what_its_parent_uses(tiny: Path) -> None:
    found = outcome(
        """
import os, signal, threading, time
llm = Llama(model, **options, n_ctx=2048)
thread = threading.Thread(target=lambda: llm("hi", max_tokens=300))
thread.start()
time.sleep(0.2)
child = os.fork()
if child == 0:
    signal.alarm(20)
    llm.close()
    os._exit(0)
code = os.waitpid(child, 0)[1]
thread.join()
print(json.dumps(code))
""",
        tiny,
    )
    assert found == 0


def test_a_model_that_answers_what_its_encoder_read_is_refused(
    stock: Build, bases: dict[str, Base], tmp_path: Path
) -> None:
    made = make(stock, tmp_path, bases, "t5")
    found = outcome(
        """
llm = Llama(model, **options, n_ctx=64, embedding=True)
context = llm._history.context
found = [tried(lambda: context.embed([np.array([5])])), tried(lambda: context.eval(np.array([5]), 0, 0))]
print(json.dumps(found))
""",
        write(tmp_path / "model.gguf", made.arch, made.metadata, made.tensors),
    )
    assert found == [["RuntimeError", "a model that answers what its encoder read is not supported here"]] * 2


def test_what_failed_a_check_of_llama_cpp_is_closed(tiny: Path) -> None:
    found = outcome(
        """
llm, other = (Llama(model, **options, n_ctx=64) for _ in range(2))
found = [tried(lambda: llm._history.context.eval(np.array([1]), 0, 999))]
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
