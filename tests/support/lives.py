"""A random life of a Llama, against a fresh context with the same tokens. Runs in a process of its own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from llama_skip import Llama, ModelLoadError

Step = tuple[Any, ...]
ALLOWED = (ValueError, TypeError, RuntimeError, ModelLoadError, OSError)
ONE = {"n_threads": 1, "n_threads_batch": 1, "verbose": False}
PROBE = 5
CLOSE = 0.02  # of the logits' standard deviation: batches of another shape are added up in another order


def refused(err: Exception, *, may_fail: bool = False) -> str:
    """Return what an error says, after a look at whether it is one that a user may get."""
    text = f"{type(err).__name__}: {err}"
    assert isinstance(err, ALLOWED) and (may_fail or "fault to report" not in text), text
    return text


def check(llm: Llama, fresh: Llama, tokens: list[int], mask: str | None) -> None:
    """Compare what one more token gives with a context that never held others."""
    assert llm.input_ids.tolist() == tokens
    if len(tokens) >= llm.n_ctx():
        return
    fresh.set_mask(mask)
    expected = fresh.logits([*tokens, PROBE])[-1]
    llm.eval([PROBE])
    found = llm._history.context.logits(-1)
    distance = float(np.abs(found - expected).max())
    assert distance <= CLOSE * expected.std(), f"{distance} off at {len(tokens)} tokens"
    llm.truncate(len(tokens))


def is_greedy(fresh: Llama, tokens: list[int], n_prompt: int, mask: str | None) -> None:
    """Check that each token behind the prompt is the most probable one, as far as sums allow to say."""
    if n_prompt >= len(tokens):
        return
    fresh.set_mask(mask)
    rows = fresh.logits(tokens[:-1], first=n_prompt - 1)
    for row, token in zip(rows, tokens[n_prompt:], strict=True):
        assert row.max() - row[token] <= CLOSE * row.std(), f"{token} is not the best of {n_prompt}"


def live(path: Path, options: dict[str, Any], steps: list[Step]) -> list[str]:
    """Take the steps, and return what was refused."""
    said: list[str] = []
    tokens: list[int] = []
    mask: str | None = None
    saved: tuple[Any, list[int], str | None] | None = None
    same = {"n_ctx": 96, "skip_layers": options.get("skip_layers"), **ONE}
    with Llama(path, **{**same, **options}) as llm, Llama(path, **same, swa_full=True) as fresh:
        for what, *args in steps:
            try:
                if what == "eval":
                    llm.eval(args[0])
                    tokens = tokens + args[0]
                elif what == "logits":
                    tokens = []
                    llm.logits(args[0])
                    tokens = args[0]
                elif what == "truncate":
                    llm.truncate(args[0])
                    tokens = tokens[: args[0]]
                elif what == "mask":
                    llm.set_mask(args[0])
                    mask = args[0]
                    llm.reset()
                    tokens = []
                elif what == "save":
                    saved = llm.save_state(), tokens, mask
                elif what == "load" and saved is not None:
                    tokens = []
                    llm.load_state(saved[0])
                    tokens = saved[1]
                    assert saved[2] == mask
                elif what == "complete":
                    prompt = tokens[: args[0]] + args[1]
                    llm.create_completion(prompt, max_tokens=args[2], temperature=0)
                    tokens = llm.input_ids.tolist()
                    assert tokens[: len(prompt)] == prompt[: len(tokens)]
                    is_greedy(fresh, tokens, len(prompt), mask)
                elif what == "generate":
                    prompt = tokens[: args[0]] + args[1]
                    for _, _ in zip(range(args[2]), llm.generate(prompt, temp=0), strict=False):
                        pass
                    tokens = llm.input_ids.tolist()
                    is_greedy(fresh, tokens, len(prompt), mask)
            except ALLOWED as err:
                said.append(refused(err))
                tokens = llm.input_ids.tolist()  # fewer, or as many as before
            check(llm, fresh, tokens, mask)
    return said


def call(path: Path, options: dict[str, Any], calls: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Make an object and call its methods with whatever arguments; return what was refused."""
    said: list[str] = []
    options = {"n_ctx": 128, **ONE, **options}
    may_fail = bool(options.get("kv_overrides"))  # a model that is no model
    if may_fail:
        arch = str(GGUFReader(path).fields["general.architecture"].contents())
        options["kv_overrides"] = {f"{arch}.{key}": value for key, value in options["kv_overrides"].items()}
    try:
        llm = Llama(path, **options)
    except ALLOWED as err:
        return [refused(err, may_fail=may_fail)]
    with llm:
        for name, kwargs in calls:
            if "logit_bias" in kwargs and kwargs["logit_bias"] == "all":
                kwargs = {**kwargs, "logit_bias": dict.fromkeys(range(llm.n_vocab()), -math.inf)}
            try:
                found = getattr(llm, name)(**kwargs)
                if kwargs.get("stream"):
                    found = list(found)
            except ALLOWED as err:
                said.append(refused(err, may_fail=may_fail))
    return said
