"""llama_skip.Llama against llama_cpp.Llama of llama-cpp-python on the unpatched library.

What is not the same stands in docs/llama-cpp-python.md: each row of its table has a test of its name here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_skip.model import replaced
from support import parity
from support.parity import AtLength, Call, Force, Raised, Side, Without, call, differences, on_theirs

from comparison.builds import Build
from comparison.libllama import Worker
from comparison.oracle import logits
from comparison.stock_build import ROOT

DOCUMENT = ROOT / "docs" / "llama-cpp-python.md"
PARIS = "The capital of France is"
STORY = "Once upon a time"
ODD = "na\u00efve \U0001f98a \0 \u65e5\u672c"
COLOURS = [{"role": "user", "content": "Name three colours."}]
TALK = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "What is 2+2?"},
]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "ok": {"type": "boolean"}},
    "required": ["name", "ok"],
}
TOOL = {"type": "function", "function": {"name": "person", "description": "a", "parameters": SCHEMA}}
PERSON = {"type": "function", "function": {"name": "person"}}
FOX = [10813, 116, 228]  # three tokens of one character


class Pair:
    """Both packages: llama_cpp in a process of its own, ours in this one."""

    def __init__(self, lib: Path, llama_cpp: Path, model: Path) -> None:
        self.worker = Worker(lib)
        self.package = str(llama_cpp)
        self.model = str(model)
        self.ours = Side("llama_skip", self.model)

    def __call__(self, what: Call | Callable[..., Any], *args: Any) -> tuple[Any, Any]:
        """Return what theirs and ours make of a call, at the same time."""
        function, args = (Side.run, (what,)) if isinstance(what, Call) else (what, args)
        with ThreadPoolExecutor(1) as pool:
            theirs = pool.submit(self.worker.call, on_theirs, self.package, self.model, function, *args)
            ours = function(self.ours, *args)
            return theirs.result(), ours

    def dies(self, what: Call | Callable[..., Any], *args: Any) -> Any:
        """Return ours of a call that ends the process of theirs."""
        function, args = (Side.run, (what,)) if isinstance(what, Call) else (what, args)
        with pytest.raises(BrokenProcessPool):
            self.worker.fresh(on_theirs, self.package, self.model, function, *args)
        return function(self.ours, *args)

    def close(self) -> None:
        self.worker.close()
        self.ours.close()


@pytest.fixture(scope="module")
def both(stock: Build, llama_cpp: Path, smollm2: Path) -> Iterator[Pair]:
    pair = Pair(stock.lib, llama_cpp, smollm2)
    yield pair
    pair.close()


def complete(prompt: Any, **kwargs: Any) -> Call:
    return call(kwargs.pop("on", "plain"), "create_completion", prompt, **{"temperature": 0.0, **kwargs})


def chat(messages: Any = COLOURS, **kwargs: Any) -> Call:
    defaults = {"temperature": 0.0, "max_tokens": 8}
    return call(kwargs.pop("on", "plain"), "create_chat_completion", messages, **{**defaults, **kwargs})


def text(found: Any) -> str:
    """The text of a completion, or of its stream."""
    result = found["result"]
    chunks = result if isinstance(result, list) else [result]
    choices = [chunk["choices"][0] for chunk in chunks]
    parts = [c["text"] if "text" in c else c.get("delta", c.get("message")).get("content") for c in choices]
    return "".join(part or "" for part in parts)


def message(found: Any) -> Any:
    return found["result"]["choices"][0]["message"]


SAME: dict[str, list[Call]] = {
    "tokenize": [
        call("plain", "tokenize", t.encode(), add_bos=bos, special=special)
        for t in (
            "",
            " ",
            "na\u00efve \U0001f98a \0 \u65e5\u672c",
            "<|im_start|>hi<|im_end|>",
            "  a \n\n\tb",
            "s" * 99,
        )
        for bos in (True, False)
        for special in (True, False)
    ],
    "tokenize_bytes": [call("plain", "tokenize", b"\xff\xfeabc")],
    "detokenize": [
        call("plain", "detokenize", t, special=special)
        for t in ([], [1, 2, 0], [1, 504, 2644], FOX[:2], list(range(300)), [49151])
        for special in (True, False)
    ],
    "detokenize_after": [call("plain", "detokenize", [504, 2644], [1, 2])],
    "greedy": [complete(PARIS, max_tokens=8, stream=s) for s in (False, True)],
    "called": [call("plain", "__call__", PARIS, temperature=0.0, max_tokens=2, model="name")],
    "stop": [complete(PARIS, max_tokens=20, stop=s) for s in (".", [".", "Paris"], ["zzz"], [], None)],
    "stop_stream": [complete(PARIS, max_tokens=20, stop="Paris", stream=True)],
    "echo": [complete(PARIS, max_tokens=2, echo=True)],
    "token_prompt": [complete([504, 2644, 282], max_tokens=4)],
    "room": [complete([504] * 250, max_tokens=None)],
    "no_limit": [complete(PARIS, max_tokens=n, stop=".") for n in (None, -1, 0, 999)],
    "one_token": [complete(PARIS, max_tokens=1, stream=s) for s in (False, True)],
    "too_long": [complete([504] * n) for n in (256, 300)],
    "characters": [complete(STORY, max_tokens=3, logits_processor=[Force(FOX)])],
    "end": [complete(STORY, logits_processor=[Force([28, 2])], stream=s) for s in (False, True)],
    "penalties_greedy": [
        complete(STORY, max_tokens=20, repeat_penalty=1.5, on=options) for options in ("plain", "last_8")
    ],
    "bias_greedy": [complete(STORY, max_tokens=4, logit_bias={260: 5.0, "28": -9})],
    "grammar": [complete("Yes or no? ", grammar='root ::= "yes" | "no"', stream=s) for s in (False, True)],
    "grammar_numbers": [complete("N: ", max_tokens=8, grammar='root ::= "[" [0-9]+ ("," [0-9]+)* "]"')],
    "processors": [
        complete(STORY, max_tokens=4, logits_processor=[Without([28]), Without([260])], stream=s)
        for s in (False, True)
    ],
    "criteria": [
        complete(STORY, max_tokens=8, stopping_criteria=[AtLength(n), AtLength(99)], stream=s)
        for n in (1, 4, 7)
        for s in (False, True)
    ],
    "logprobs_stream": [complete(PARIS, max_tokens=3, logprobs=n, stream=True, on="all") for n in (0, 3)],
    "chat": [chat(m, stream=s) for m in (COLOURS, TALK) for s in (False, True)],
    "chat_seed": [chat(seed=4, temperature=0.9, model="name", repeat_penalty=1.2, logit_bias={260: 1.0})],
    "chat_stop": [chat(stop=s, max_tokens=20) for s in ("Red", ["blue", "."])],
    "chat_text": [chat(response_format={"type": "text"})],
    "chat_grammar": [chat(grammar='root ::= "red" | "blue"', stream=s) for s in (False, True)],
    "chat_processor": [chat(logits_processor=[Without([33])])],
    "chat_logprobs": [chat(logprobs=True, top_logprobs=2, max_tokens=3, stream=True, on="all")],
    "chat_tools": [chat(tools=[TOOL], tool_choice=c) for c in ("auto", "none")],
    "chat_unknown_tool": [chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "x"}})],
    "chat_too_long": [chat([{"role": "user", "content": "x " * 300}])],
    "embed": [
        call(o, "embed", t, **kwargs)
        for o in ("tokens", "mean")
        for t in ("Hello world", ["Hello"], "x " * 50)
        for kwargs in ({}, {"normalize": True})
    ],
    "embed_several": [call("mean", "embed", ["a b", "c", "e " * 20, "f " * 15, "x " * 50])],
    "embed_too_long": [call("mean", "embed", "x " * 50, truncate=False)],
    "create_embedding": [
        call("mean", "create_embedding", t, model=m) for t in ("Hello", ["a", "b c"]) for m in (None, "m")
    ],
}
SAMPLED: list[dict[str, Any]] = [
    {},
    {"temperature": 1.5},
    {"temperature": -1.0},
    {"top_k": 0, "top_p": 1.0, "min_p": 0.0},
    {"top_k": 3},
    {"top_k": -1},
    {"top_p": 0.5},
    {"min_p": 0.3},
    {"typical_p": 0.4},
    {"repeat_penalty": 1.4},
    {"frequency_penalty": 0.9},
    {"presence_penalty": 0.9},
    {"logit_bias": {28: -5.0, 260: 4.0}},
    {"logits_processor": [Without([28])]},
    {"temperature": 1.2, "typical_p": 0.9, "repeat_penalty": 1.2, "frequency_penalty": 0.3, "min_p": 0.01},
    {"mirostat_mode": 1, "temperature": 1.0},
    {"mirostat_mode": 2, "temperature": 1.0, "mirostat_tau": 3.0, "mirostat_eta": 0.3},
]


@pytest.mark.parametrize("calls", SAME.values(), ids=SAME)
def test_the_same_result(both: Pair, calls: list[Call]) -> None:
    for one in calls:
        theirs, ours = both(one)
        assert differences(theirs, ours) == [], one


@pytest.mark.parametrize("options", SAMPLED, ids=str)
def test_the_same_tokens_for_a_seed(both: Pair, options: dict[str, Any]) -> None:
    for seed in (1, None):
        theirs, ours = both(complete(STORY, max_tokens=6, seed=seed, **{"temperature": 0.8, **options}))
        assert differences(theirs, ours) == []


def test_generate_and_sample(both: Pair, tokens: list[int]) -> None:
    for function, args in (
        (parity.numbers, ()),
        (parity.evaluated, (tokens[:16],)),
        (parity.reused, ()),
        (parity.restored, (tokens[:12],)),
        (parity.without_seed, (5,)),
    ):
        theirs, ours = both(function, *args)
        assert differences(theirs, ours) == [], function.__name__
    for kwargs in ({"temp": 0.0}, {"temp": 0.0, "repeat_penalty": 1.3}):
        theirs, ours = both(parity.generated, tokens[:8], kwargs)
        assert theirs == ours
    for kwargs in ({}, {"temp": 1.5, "top_k": 0}, {"temp": 0.0}):
        theirs, ours = both(parity.sampled, tokens[:8], [1, 2, 2**31], kwargs)
        assert theirs == ours


@pytest.mark.parametrize(
    "one",
    [call("plain", "embed", "x"), call("plain", "create_embedding", "x"), call("plain", "eval", [504] * 257)],
    ids=lambda one: one.method,
)
def test_errors_of_one_type(both: Pair, one: Call) -> None:
    theirs, ours = both(one)
    assert theirs.kind == ours.kind == "RuntimeError"


def kinds(found: tuple[Any, Any]) -> tuple[str, str]:
    """The types of what was raised; "" for a result."""
    theirs, ours = (one.kind if isinstance(one, Raised) else "" for one in found)
    return theirs, ours


def made(both: Pair, path: str | None = None, **options: Any) -> tuple[str, str]:
    return kinds(both(parity.construction, path, options))


def test_difference_unknown_arguments(both: Pair) -> None:
    assert made(both, n_ctxt=64) == ("", "TypeError")


def test_difference_positional_arguments(both: Pair) -> None:
    assert kinds(both(call("plain", "create_completion", PARIS, None, 1))) == ("", "TypeError")
    theirs, _ = both(parity.signatures)
    assert list(theirs["create_completion"])[2:5] == ["suffix", "max_tokens", "temperature"]


def test_difference_missing_file(both: Pair, tmp_path: Path) -> None:
    assert made(both, str(tmp_path / "missing.gguf")) == ("ValueError", "FileNotFoundError")


def test_difference_broken_file(both: Pair, tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"not a model" * 99)
    assert made(both, str(path)) == ("ValueError", "ModelLoadError")


def test_difference_bad_options(both: Pair) -> None:
    for options in ({"mirostat_mode": 5}, {"repeat_penalty": -1.0}):
        found = both(complete(STORY, max_tokens=1, seed=1, **{"temperature": 0.8, **options}))
        assert kinds(found) == ("", "ValueError")


def test_difference_empty_prompt(both: Pair) -> None:
    theirs, ours = both(complete("", max_tokens=2))
    assert theirs.kind == "AssertionError"
    assert ours["held"][0] == both.ours.llm("plain").token_bos()


def test_difference_no_tokens(both: Pair) -> None:
    assert kinds(both(complete([]))) == ("AssertionError", "ValueError")
    assert kinds(both(call("plain", "eval", []))) == ("", "ValueError")
    assert kinds(both(call("plain", "sample"))) == ("AssertionError", "RuntimeError")


def test_difference_unknown_tokens(both: Pair) -> None:
    assert kinds(both(call("plain", "eval", [49152]))) == ("RuntimeError", "ValueError")
    assert both.dies(call("plain", "detokenize", [49152])).kind == "ValueError"


def test_difference_bad_grammar(both: Pair) -> None:
    assert both.dies(complete(STORY, max_tokens=1, grammar="root ::= (")).kind == "ValueError"


def test_difference_sent_tokens(both: Pair, tokens: list[int]) -> None:
    ours = both.dies(parity.sent, tokens[:8])
    assert len(ours) == 11
    assert ours[-2:] == [504, 28]


def test_difference_suffix(both: Pair) -> None:
    theirs, ours = both(complete("Hi", suffix=" there", max_tokens=1))
    assert theirs["held"][0] == theirs["held"][-1] == 0  # <|endoftext|>, for want of tokens for filling in
    assert ours.kind == "ValueError"


def test_difference_last_character(both: Pair) -> None:
    theirs, ours = both(complete(STORY, max_tokens=1, logits_processor=[Force(FOX)]))
    counts = [one["result"]["usage"]["completion_tokens"] for one in (theirs, ours)]
    assert counts == [3, 1]
    assert (text(theirs), text(ours)) == ("\U0001f98a", "")


def test_difference_empty_stop(both: Pair) -> None:
    theirs, ours = both(complete(PARIS, max_tokens=2, stop=[""]))
    assert (text(theirs), text(ours)) == ("", " Paris.")


def test_difference_stop_order(both: Pair) -> None:
    theirs, ours = both(complete(STORY, stop=["e", "th"], logits_processor=[Force([260])]))
    assert (text(theirs), text(ours)) == (" th", " ")


def test_difference_stream_pieces(both: Pair) -> None:
    for stop, more in ((".", 1), ("arm", 0)):
        theirs, ours = both(complete(PARIS, max_tokens=4, stop=stop, stream=True))
        assert text(theirs) == text(ours)
        assert theirs["held"] == ours["held"]
        assert len(theirs["result"]) - len(ours["result"]) == more
        chunks = theirs["result"][-1], ours["result"][-1]
        assert differences(*chunks) == []


def test_difference_stream_echo(both: Pair) -> None:
    theirs, ours = both(complete(PARIS, max_tokens=2, echo=True, stream=True))
    assert text(ours) == PARIS + text(theirs)


def test_difference_echo_tokens(both: Pair) -> None:
    theirs, ours = both(complete([504, 2644], max_tokens=1, echo=True))
    assert theirs.kind == "TypeError"
    assert text(ours).startswith(both.ours.llm("plain").detokenize([504, 2644]).decode())


def with_logprobs(both: Pair, prompt: Any, **kwargs: Any) -> tuple[Any, Any]:
    found = both(complete(prompt, max_tokens=2, logprobs=1, on="all", **kwargs))
    theirs, ours = (one["result"]["choices"][0]["logprobs"] for one in found)
    return theirs, ours


def test_difference_logprobs_type(both: Pair) -> None:
    theirs, ours = with_logprobs(both, PARIS)
    assert {type(p) for p in theirs["token_logprobs"]} == {np.float32}
    assert {type(p) for p in ours["token_logprobs"]} == {float}
    theirs["token_logprobs"] = [float(p) for p in theirs["token_logprobs"]]
    theirs["top_logprobs"] = [{t: float(p) for t, p in top.items()} for top in theirs["top_logprobs"]]
    assert differences(theirs, ours) == []


def test_difference_echoed_logprobs(both: Pair) -> None:
    theirs, ours = with_logprobs(both, PARIS, echo=True)
    assert len(theirs["tokens"]) == len(ours["tokens"]) - 1
    assert "".join(ours["tokens"]).startswith(PARIS)
    llm = both.ours.llm("all")
    prompt = llm.tokenize(PARIS.encode(), add_bos=False)
    rows = llm.logits_to_logprobs(llm.logits(prompt))
    right = [float(row[token]) for row, token in zip(rows, prompt[1:], strict=False)]
    shifted = [float(row[token]) for row, token in zip(rows[1:], prompt[1:], strict=False)]
    assert ours["token_logprobs"][0] is None
    assert ours["token_logprobs"][1 : len(prompt)] == pytest.approx(right)
    assert [float(p) for p in theirs["token_logprobs"][1 : len(prompt)]] == pytest.approx(shifted)


def test_difference_text_offset(both: Pair) -> None:
    theirs, ours = with_logprobs(both, [504, 2644])
    assert theirs["text_offset"][0] == 2
    assert ours["text_offset"][0] == len(both.ours.llm("all").detokenize([504, 2644]).decode())


def test_difference_logits_all(both: Pair) -> None:
    theirs, ours = both(complete(PARIS, max_tokens=2, logprobs=1))
    assert theirs.kind == "ValueError"
    assert len(ours["result"]["choices"][0]["logprobs"]["tokens"]) == 2


def test_difference_arrays(both: Pair) -> None:
    theirs, ours = both(parity.held_arrays, [504, 28])
    assert theirs == ((256,), (512, 49152))  # n_batch rows
    assert ours == ((2,), (0, 49152))


def test_difference_bias_and_processors(both: Pair) -> None:
    kwargs = {"logits_processor": [Without([28])], "logit_bias": {260: 50.0}, "max_tokens": 2}
    theirs, ours = both(complete(STORY, **kwargs))
    assert theirs["held"] == both.ours.run(complete(STORY, max_tokens=2))["held"]
    assert ours["held"][-1] == 260


@pytest.mark.parametrize("mode", [1, 2])
def test_difference_mirostat(both: Pair, mode: int) -> None:
    kwargs = {"mirostat_mode": mode, "seed": 7, "max_tokens": 8}
    plain, _ = both(complete(STORY, temperature=1.0, **kwargs))
    theirs, ours = both(complete(STORY, temperature=0.2, **kwargs))
    assert theirs["held"] == plain["held"] != ours["held"]
    _, ours = both(complete(STORY, temperature=1.0, repeat_penalty=1.4, **kwargs))
    assert ours["held"] == plain["held"]


def test_difference_grammar_sampling(both: Pair) -> None:
    grammar = 'root ::= "[" [0-9]+ ("," [0-9]+)* "]"'
    theirs, ours = both(complete("N: ", temperature=0.8, seed=3, max_tokens=12, grammar=grammar))
    assert theirs["held"] != ours["held"]
    assert all(re.match(r"\[[0-9,]+", text(one)) for one in (theirs, ours))


def test_difference_json_grammar(both: Pair) -> None:
    for shape in ({}, {"schema": SCHEMA}):
        found = both(chat(response_format={"type": "json_object", **shape}, max_tokens=256))
        assert text(found[0]) != text(found[1])
        for one in found:
            assert isinstance(json.loads(text(one)), dict)


def test_difference_response_formats(both: Pair) -> None:
    shape = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    theirs, ours = both(chat(response_format=shape))
    assert text(theirs).startswith("1.")
    assert text(ours).startswith("{")
    assert kinds(both(chat(response_format={"type": "xml"}))) == ("", "ValueError")


def test_difference_forced_tool(both: Pair) -> None:
    theirs, ours = map(message, both(chat(tools=[TOOL], tool_choice=PERSON, max_tokens=48)))
    assert list(theirs) == ["role", "content", "function_call", "tool_calls"]
    assert list(ours) == ["role", "content", "tool_calls"]
    for calls in (theirs["tool_calls"], ours["tool_calls"]):
        assert [list(c) for c in calls] == [["id", "type", "function"]]
        assert calls[0]["function"]["name"] == "person"
        assert set(json.loads(calls[0]["function"]["arguments"])) == {"name", "ok"}
    assert theirs["tool_calls"][0]["id"].startswith("call__0_person_")
    assert re.fullmatch("call_[0-9a-f]{24}", ours["tool_calls"][0]["id"])


def test_difference_functions(both: Pair) -> None:
    theirs, ours = both(chat(functions=[TOOL["function"]], function_call={"name": "person"}, max_tokens=48))
    assert set(message(theirs)) == set(message(ours))
    reasons = [one["result"]["choices"][0]["finish_reason"] for one in (theirs, ours)]
    assert reasons == ["tool_calls", "function_call"]


def test_difference_required_tool(both: Pair) -> None:
    theirs, ours = map(message, both(chat(tools=[TOOL], tool_choice="required")))
    assert "tool_calls" not in theirs
    assert ours["tool_calls"][0]["function"]["name"] == "person"


def test_difference_chat_logprobs(both: Pair) -> None:
    theirs, ours = both(chat(logprobs=True, max_tokens=2, on="all"))
    found = [one["result"]["choices"][0]["logprobs"] for one in (theirs, ours)]
    assert found[0] is None
    assert len(found[1]["content"]) == 2


def test_difference_messages(both: Pair) -> None:
    assert kinds(both(chat([]))) == ("", "ValueError")
    assert kinds(both(chat([{"role": "user"}]))) == ("UndefinedError", "ValueError")


def test_difference_content_parts(both: Pair) -> None:
    theirs, ours = both(chat([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]))
    assert theirs.kind == "TypeError"
    assert ours["held"] == both.ours.run(chat([{"role": "user", "content": "Hi"}]))["held"]


def test_difference_embed_nothing(both: Pair) -> None:
    assert kinds(both(call("tokens", "embed", ""))) == ("RuntimeError", "ValueError")
    theirs, ours = both(call("tokens", "embed", []))
    assert theirs.kind == "RuntimeError"
    assert ours["result"] == []


def test_difference_embed_tokens(both: Pair) -> None:
    texts = ["a b c", "d e"]
    ours = both.ours.run(call("tokens", "embed", texts))
    alone = [both.ours.run(call("tokens", "embed", t))["result"] for t in texts]
    assert np.allclose(ours["result"][0], alone[0], atol=1e-4)
    assert np.allclose(ours["result"][1], alone[1], atol=1e-4)
    try:
        theirs, _ = both(call("tokens", "embed", texts))
    except BrokenProcessPool:
        return  # what it reads beyond the first text may be no memory of its own
    assert np.allclose(theirs["result"][0], alone[0], atol=1e-4)
    assert not np.allclose(theirs["result"][1], alone[1], atol=0.1)


def test_difference_seed_zero(both: Pair) -> None:
    zero, default = (both(parity.without_seed, seed) for seed in (0, 0xFFFFFFFF))
    assert zero[0] == default[0] == default[1]
    assert zero[1] != zero[0]


def test_difference_two_streams(both: Pair) -> None:
    theirs, ours = both(parity.interleaved)
    assert theirs.startswith("The capital of France")
    assert ours.startswith("RuntimeError")


def test_difference_sample(both: Pair, tokens: list[int]) -> None:
    theirs, ours = both(parity.sampled, tokens[:8], [1, 2, 3], {"temp": 1.5, "top_k": 0}, 1)
    assert len(set(theirs)) == 1
    assert ours == parity.sampled(both.ours, tokens[:8], [1, 2, 3], {"temp": 1.5, "top_k": 0})


def test_difference_pickle(both: Pair) -> None:
    theirs, ours = both(parity.pickled)
    assert ours == "TypeError" != theirs


def table(header: str) -> dict[str, list[str]]:
    """The rows of the table of the document that begins with this column, by their first cell."""
    _, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(f"\n| {header} |")
    rows = [line.strip("|").split("|") for line in rest.split("\n\n")[0].splitlines()[2:]]
    assert rows, header
    return {row[0].strip().strip("`"): [cell.strip() for cell in row[1:]] for row in rows}


def test_each_difference_of_the_document_has_its_test() -> None:
    prefix = "test_difference_"
    assert set(table("difference")) == {n.removeprefix(prefix) for n in globals() if n.startswith(prefix)}
    assert all(len(cells) == 4 and all(cells) for cells in table("difference").values())


def test_arguments_and_defaults(both: Pair) -> None:
    theirs, ours = both(parity.signatures)
    assert set(theirs) - set(ours) == set(table("method"))
    groups = (replaced.CONSTRUCTION, replaced.ONE_TOKEN, replaced.EMBEDDING, replaced.DOWNLOAD)
    refused = {name: text for group in groups for name, text in group.items()}
    assert {name: cells[0].replace("`", "") for name, cells in table("argument").items()} == refused
    missing, defaults = set(), set()
    for method in set(theirs) & set(ours):
        for name, default in theirs[method].items():
            if name not in ours[method]:
                missing.add(name)
            elif ours[method][name] != default:
                defaults.add(name)
    assert missing == set(refused)
    assert defaults == set(table("default"))


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("create_completion", replaced.SAMPLING),
        ("generate", replaced.SAMPLING),
        ("create_chat_completion", replaced.SAMPLING),
        ("sample", replaced.ONE_TOKEN),
        ("embed", replaced.EMBEDDING),
        ("from_pretrained", replaced.DOWNLOAD),
    ],
)
def test_refused_arguments_say_what_to_use(both: Pair, method: str, names: dict[str, str]) -> None:
    for name, reason in names.items():
        with pytest.raises(TypeError, match=re.escape(f"{name} is not supported, use instead: {reason}")):
            getattr(both.ours.llm("plain"), method)([1], **{name: 1})
    for name, reason in replaced.CONSTRUCTION.items():
        with pytest.raises(TypeError, match=re.escape(reason)):
            both.ours.make(**{name: None})


def python(
    code: str, *args: object, first: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, with this one's packages."""
    paths = [*([str(first)] if first else []), *sys.path]
    kept = {name: value for name, value in os.environ.items() if name != "LLAMA_CPP_LIB_PATH"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env={**kept, "PYTHONPATH": os.pathsep.join(paths), **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


COMPAT = """
import json, sys
import llama_skip.compat
import llama_cpp, numpy
llm = llama_cpp.Llama(sys.argv[1], kv_overrides={"skip.layers": "13-14,25"}, logits_all=True, n_threads=1,
                      n_threads_batch=1, verbose=False)
tokens = json.loads(sys.argv[2])
llm.eval(tokens)
numpy.save(sys.argv[3], llm.scores[: len(tokens)])
"""


def test_compat(
    stock: Build, llama_cpp: Path, smollm2: Path, zeroed: Any, tokens: list[int], tmp_path: Path
) -> None:
    done = python(COMPAT, smollm2, tokens[:24], tmp_path / "scores.npy", first=llama_cpp)
    assert done.returncode == 0, done.stderr
    expected = stock.worker.call(logits, zeroed([13, 14, 25]), tokens[:24], n_single=0)
    assert np.array_equal(np.load(tmp_path / "scores.npy"), expected)


def test_compat_after_llama_cpp(stock: Build, llama_cpp: Path) -> None:
    done = python("import llama_cpp, llama_skip.compat", first=llama_cpp, LLAMA_CPP_LIB_PATH=str(stock.lib))
    assert "RuntimeError: llama_cpp is already imported: import llama_skip.compat before it" in done.stderr
    assert done.returncode == 1


def test_compat_with_another_release(tmp_path: Path) -> None:
    info = tmp_path / "llama_cpp_python-0.3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: 0.3.1\n")
    done = python("import llama_skip.compat", first=tmp_path)
    assert "ImportError: llama-cpp-python 0.3.1 is installed, this library is that of 0.3.36" in done.stderr
    assert done.returncode == 1
