"""What the context of a Llama holds: reused prefixes, masks, saved states, and errors on the way."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.matrix.arch_files import generated_one
from support.shared.counter import Counter

from comparison.builds import Build

PROMPT = "The first train left the harbour town before sunrise, and nobody"
GREEDY = {"temperature": 0.0, "max_tokens": 6}


def text_of(completion: Any) -> str:
    text: str = completion["choices"][0]["text"]
    return text


def test_a_shared_prefix_is_not_evaluated_again(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = make()
    counter = Counter(llm, monkeypatch)
    prompt = llm.tokenize(PROMPT.encode())
    text = text_of(llm(PROMPT, **GREEDY))
    assert counter.take() == len(prompt) + 5
    # all but the last token, whose logits are needed again
    assert text_of(llm(PROMPT, **GREEDY)) == text
    assert counter.take() == 1 + 5
    more = llm.tokenize((PROMPT + text + " on the").encode())
    n_shared = len(prompt) + 5
    assert more[:n_shared] == llm.input_ids.tolist()
    llm(more, max_tokens=1)
    assert counter.take() == len(more) - n_shared
    llm.reset()
    assert text_of(llm(PROMPT, **GREEDY)) == text
    assert counter.take() == len(prompt) + 5


def test_a_prefix_of_another_mask_is_evaluated_again(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = make()
    counter = Counter(llm, monkeypatch)
    prompt = llm.tokenize(PROMPT.encode())
    plain = text_of(llm(PROMPT, **GREEDY))
    llm.set_mask("13-14,25")
    counter.take()
    masked = text_of(llm(PROMPT, **GREEDY))
    assert counter.take() == len(prompt) + 5
    assert masked == text_of(make(skip_layers="13-14,25")(PROMPT, **GREEDY)) != plain
    llm.set_mask("13-14,25", 0.9)
    counter.take()
    assert text_of(llm(PROMPT, **GREEDY)) == text_of(
        make(skip_layers="13-14,25", skip_scale=0.9)(PROMPT, **GREEDY)
    )
    assert counter.take() == len(prompt) + 5
    llm.set_mask(None)
    assert text_of(llm(PROMPT, **GREEDY)) == plain


def test_a_saved_state_comes_back(make: Any, tokens: list[int]) -> None:
    llm = make(logits_all=True, seed=5)
    llm.eval(tokens[:10])
    state = llm.save_state()
    expected = llm.scores.copy()
    llm.eval(tokens[10:12])
    follows = llm.scores[10:].copy()
    for other in (llm, make(logits_all=True), make()):
        other.eval(tokens[3:6])
        other.load_state(pickle.loads(pickle.dumps(state)))
        assert other.input_ids.tolist() == tokens[:10]
        with pytest.raises(RuntimeError, match="evaluate a token first"):
            other.sample()
        other.eval(tokens[10:12])
        assert other.sample(temp=0) == follows[-1].argmax()
        if other.scores.size:
            assert np.array_equal(other.scores[:10], expected)
            assert np.array_equal(other.scores[10:], follows)
    assert state.n_tokens == 10
    assert state.llama_state_size == len(state.llama_state)
    assert state.scores.shape == (10, llm.n_vocab())
    assert not np.shares_memory(state.scores, llm._history.scores)


def test_a_state_under_a_mask(make: Any, tokens: list[int]) -> None:
    llm = make()
    llm.set_mask("13-14")
    llm.eval(tokens[:8])
    state = llm.save_state()
    llm.reset()
    llm.load_state(state)
    prompt = tokens[:9]
    assert text_of(llm(prompt, **GREEDY)) == text_of(make(skip_layers="13-14")(prompt, **GREEDY))


@pytest.mark.parametrize(
    ("saved", "mask", "kwargs"),
    [
        ({"skip_layers": "13"}, None, {}),
        ({}, None, {"skip_layers": "13"}),
        ({"skip_layers": "13"}, None, {"skip_layers": "14"}),
        ({"skip_layers": "13", "skip_scale": 0.5}, None, {"skip_layers": "13"}),
        ({}, "13", {}),
    ],
    ids=str,
)
def test_a_state_of_something_else_is_refused(
    make: Any, tokens: list[int], saved: dict[str, Any], mask: str | None, kwargs: dict[str, Any]
) -> None:
    one, other = make(**saved), make(**kwargs)
    one.set_mask(mask)
    one.eval(tokens[:8])
    state = one.save_state()
    other.eval(tokens[:5])
    with pytest.raises(RuntimeError):
        other.load_state(state)
    assert other.n_tokens == 0
    assert text_of(other(PROMPT, **GREEDY)) == text_of(make(**kwargs)(PROMPT, **GREEDY))


def test_a_state_that_is_too_long_is_refused(make: Any, tiny: Path) -> None:
    one, other = make(tiny, n_ctx=512), make(tiny, n_ctx=256)
    one.eval([1] * 300)
    with pytest.raises(RuntimeError):
        other.load_state(one.save_state())
    assert other.n_tokens == 0
    other.eval([1] * 256)


def test_a_broken_state_is_refused(make: Any, tokens: list[int]) -> None:
    llm = make()
    llm.eval(tokens[:5])
    state = llm.save_state()
    for data in (state.llama_state[: len(state.llama_state) // 2], b"", b"x" * 100):
        with pytest.raises(RuntimeError):
            llm.load_state(replace(state, llama_state=data, llama_state_size=len(data)))
        assert llm.n_tokens == 0
    llm.load_state(state)
    assert llm.n_tokens == 5


def test_what_was_held_stays_after_an_error(make: Any, tokens: list[int]) -> None:
    llm = make(n_ctx=256)
    llm.eval(tokens[:5])
    expected = make().logits(tokens[:6])[-1].argmax()
    for bad, error, reason in [
        ([], ValueError, "tokens: empty"),
        ([llm.n_vocab()], ValueError, "49152"),
        ([-1], ValueError, "-1"),
        ([1.5], TypeError, "expected a list of ints"),
        (["a"], TypeError, "expected a list of ints"),
        ([[1]], TypeError, "expected a list of ints"),
        ([1] * 252, RuntimeError, "the context is full: n_ctx is 256"),
        ([1] * 600, RuntimeError, "the context is full: n_ctx is 256"),
    ]:
        with pytest.raises(error, match=reason):
            llm.eval(bad)
        assert llm.input_ids.tolist() == tokens[:5]
    llm.eval(tokens[5:6])
    assert llm.sample(temp=0) == expected
    with pytest.raises(ValueError, match="first: 4 is not within 0-3"):
        llm.logits(tokens[:3], first=4)
    with pytest.raises(ValueError, match="first: -1"):
        llm.logits(tokens[:3], first=-1)


@pytest.mark.parametrize("logits_all", [False, True])
def test_logits_from_a_token_on(make: Any, tokens: list[int], logits_all: bool) -> None:
    llm = make(logits_all=logits_all)
    rows = llm.logits(tokens[:8])
    assert rows.shape == (8, llm.n_vocab())
    assert llm.logits(tokens[:8], first=8).shape == (0, llm.n_vocab())
    last = llm.logits(tokens[:8], first=5)
    assert last.shape == (3, llm.n_vocab())
    assert np.array_equal(last.argmax(1), rows[5:].argmax(1))


def test_truncate(make: Any, tokens: list[int]) -> None:
    llm = make()
    llm.eval(tokens[:5])
    llm.truncate(9)
    assert llm.n_tokens == 5
    with pytest.raises(ValueError, match="n_tokens"):
        llm.truncate(-1)
    assert llm.n_tokens == 5


def test_a_recurrent_model_forgets_all(stock: Build, make: Any, tmp_path: Path) -> None:
    path = generated_one(stock, "mamba2", tmp_path)
    llm = make(path, n_ctx=256)
    rows = llm.logits([1, 2, 3, 4])
    llm.truncate(2)
    assert llm.n_tokens == 0
    assert next(llm.generate([1, 2, 3, 4], temp=0)) == rows[-1].argmax()
    state = llm.save_state()
    llm.reset()
    llm.load_state(state)
    llm.eval([5])
    assert llm.sample(temp=0) == make(path, n_ctx=256).logits([1, 2, 3, 4, 5])[-1].argmax()
