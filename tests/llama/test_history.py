"""What the context of a Llama holds: reused prefixes, masks, saved states, and errors on the way."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_skip.openai import embedding
from support.matrix.arch_files import Base, generated_one, write
from support.matrix.arch_files import make as base_model
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


def test_a_window_that_is_gone(make: Any, windows: Path) -> None:
    fresh = make(windows, n_ctx=1600, swa_full=True)
    held, tail = [3 + i % 50 for i in range(1400)], [7, 9, 11]
    expected = fresh.logits(held[:100] + tail)[-3:]
    for leave in ("truncate", "prompt"):
        llm = make(windows, n_ctx=1600, swa_full=False, logits_all=True)
        llm.eval(held)
        if leave == "truncate":
            llm.truncate(100)
            assert llm.input_ids.tolist() == held[:100]
            llm.eval(tail)
        else:
            next(llm.generate(held[:100] + tail, temp=0))
        assert llm.input_ids.tolist() == held[:100] + tail
        assert np.abs(llm.scores[-3:] - expected).max() < 1e-3 * expected.std()


def test_a_window_that_is_there(make: Any, windows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = make(windows, n_ctx=256, swa_full=False)
    tokens = [3 + i for i in range(40)]
    llm.eval(tokens)
    counter = Counter(llm, monkeypatch)
    llm.truncate(38)
    llm.eval([5])
    assert counter.take() == 1
    found = llm.save_state()
    assert llm.sample(temp=0) == make(windows, n_ctx=256).logits([*tokens[:38], 5])[-1].argmax()
    llm.reset()
    llm.load_state(found)
    assert llm.input_ids.tolist() == [*tokens[:38], 5]


def test_a_state_of_other_weights_is_refused(
    make: Any, smollm2: Path, zeroed: Callable[[list[int]], Path], tmp_path: Path
) -> None:
    one, other = make(), make(zeroed([5]))
    one.eval([1, 2, 3])
    state = one.save_state()
    with pytest.raises(RuntimeError, match="saved with another model"):
        other.load_state(state)
    assert other.n_tokens == 0
    copy = tmp_path / "copy.gguf"
    copy.symlink_to(smollm2)
    same = make(copy)
    same.load_state(state)
    assert same.input_ids.tolist() == [1, 2, 3]


def test_all_logits_take_the_memory_of_their_tokens(make: Any, smollm2: Path) -> None:
    llm = make(n_ctx=8192, logits_all=True)
    rows = [llm.logits([1, 2, 3]).copy()]
    llm.eval([4, 5])
    assert np.array_equal(llm.scores[:3], rows[0])
    assert llm.scores.shape == (5, llm.n_vocab())
    assert llm._history.scores.nbytes <= 10 * 4 * llm.n_vocab()


@pytest.mark.parametrize("what", ["complete", "reset", "eval"])
def test_a_processor_that_uses_its_own_model(make: Any, what: str) -> None:
    llm = make()

    def process(ids: Any, scores: Any) -> Any:
        if len(ids) == 8:
            {
                "complete": lambda: llm("Once upon a time", max_tokens=2),
                "reset": llm.reset,
                "eval": lambda: llm.eval([5]),
            }[what]()
        return scores

    with pytest.raises(RuntimeError, match="something else in between"):
        llm([1, 2, 3, 4, 5], max_tokens=8, temperature=0, logits_processor=[process])


def test_an_encoder_writes_no_text(stock: Build, bases: dict[str, Base], make: Any, tmp_path: Path) -> None:
    model = base_model(stock, tmp_path, bases, "bert")
    llm = make(write(tmp_path / "bert.gguf", model.arch, model.metadata, model.tensors), n_ctx=64)
    with pytest.raises(RuntimeError, match="writes no text"):
        llm([5, 6, 7], max_tokens=2)


def test_a_model_with_embeddings_writes_what_it_writes_without(
    stock: Build, bases: dict[str, Base], make: Any, tmp_path: Path
) -> None:
    model = base_model(stock, tmp_path, bases, "lfm2-dense")
    path = write(tmp_path / "lfm2.gguf", model.arch, model.metadata, model.tensors)
    plain, both = make(path, n_ctx=256), make(path, n_ctx=256, embedding=True, pooling_type=1)
    for _ in range(2):
        assert np.array_equal(both.logits([5, 6, 7])[-1], plain.logits([5, 6, 7])[-1])
        assert both._history.embed([[5, 6]])[0].shape == (both.n_embd(),)


def test_logits_that_are_not_known_are_nan(make: Any, tiny: Path) -> None:
    plain, llm = make(tiny), make(tiny, logits_all=True, hidden_states=True)
    plain.eval([1, 2, 3])
    llm.load_state(plain.save_state())
    llm.eval([4])
    assert np.isnan(llm.scores[:3]).all() and np.isfinite(llm.scores[3]).all()
    llm.hidden_states([1])
    llm.eval([2, 3])
    assert np.isnan(llm.scores[:1]).all() and np.isfinite(llm.scores[1:]).all()


def test_a_failed_eval_leaves_what_was_held(make: Any, windows: Path, stock: Build, tmp_path: Path) -> None:
    held = [3 + i % 50 for i in range(60)]
    for path in (windows, generated_one(stock, "mamba2", tmp_path)):
        llm = make(path, n_ctx=256, n_batch=16, n_ubatch=16, swa_full=False)
        llm.eval(held)
        with pytest.raises((RuntimeError, ValueError)):
            llm.eval([5] * 40 + [10**6])
        if path == windows:
            with pytest.raises(RuntimeError, match="the context is full"):
                llm.eval([5] * 300)
        assert llm.input_ids.tolist() == held
        llm.eval([7])
        expected = make(path, n_ctx=256, swa_full=True).logits([*held, 7])[-1]
        assert llm.sample(temp=0) == expected.argmax()


def test_a_recurrent_model_evaluates_again(stock: Build, make: Any, tmp_path: Path) -> None:
    path = generated_one(stock, "mamba2", tmp_path)
    llm = make(path, n_ctx=256)
    llm.eval([1, 2, 9, 9])
    llm.truncate(2)
    assert llm.n_tokens == 2
    llm.eval([3])
    assert llm.sample(temp=0) == make(path, n_ctx=256).logits([1, 2, 3])[-1].argmax()
    rows = llm.logits([1, 2, 3, 4])
    assert next(llm.generate([1, 2, 3, 4], temp=0)) == rows[-1].argmax()
    state = llm.save_state()
    llm.reset()
    llm.load_state(state)
    llm.eval([5])
    assert llm.sample(temp=0) == make(path, n_ctx=256).logits([1, 2, 3, 4, 5])[-1].argmax()


def test_a_recurrent_model_embeds_with_one_state(stock: Build, make: Any, tmp_path: Path) -> None:
    llm = make(generated_one(stock, "mamba2", tmp_path), n_ctx=256, embedding=True, pooling_type=1)
    assert llm._history.context.n_seq_max == 1
    texts = [[1, 2, 3], [4, 5], [1, 2, 3]]
    together, n_tokens = embedding.embed(llm._history, texts, normalize=False, truncate=True)
    assert n_tokens == 8
    for text, found in zip(texts, together, strict=True):
        (alone,), _ = embedding.embed(llm._history, [text], normalize=False, truncate=True)
        assert np.array_equal(found, alone)
