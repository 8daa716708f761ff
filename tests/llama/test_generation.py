"""Tokens and completions of the class Llama, against the logits that they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_skip import LogitsProcessorList, MinTokensLogitsProcessor, StoppingCriteriaList

PROMPT = "The capital of France is"
GREEDY = {"temperature": 0.0, "max_tokens": 8}
# SmolLM2 has no tokens for filling in; three that nothing else uses
FIM = {f"tokenizer.ggml.fim_{part}_token_id": token for part, token in (("pre", 8), ("suf", 9), ("mid", 10))}


def text_of(completion: Any) -> str:
    text: str = completion["choices"][0]["text"]
    return text


def log_softmax(row: np.ndarray) -> np.ndarray:
    exact = row.astype(np.float64)
    return exact - np.log(np.exp(exact - exact.max()).sum()) - exact.max()


def test_a_logits_processor_replaces_what_the_sampler_sees(make: Any) -> None:
    llm = make()
    prompt = llm.tokenize(PROMPT.encode())
    wanted = llm.tokenize(b" Rome and Oslo", add_bos=False)
    seen: list[list[int]] = []

    def force(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        seen.append(ids.tolist())
        assert scores.shape == (llm.n_vocab(),)
        assert scores.dtype == np.float32
        scores[:] = -np.inf
        scores[wanted[len(ids) - len(prompt)]] = 0
        return scores

    kwargs = {"max_tokens": len(wanted), "logits_processor": LogitsProcessorList([force])}
    assert text_of(llm(PROMPT, **kwargs)) == " Rome and Oslo"
    assert seen == [prompt + wanted[:n] for n in range(len(wanted))]


def test_processors_are_chained_and_change_nothing_for_the_next_call(make: Any) -> None:
    llm = make(logits_all=True)
    tokens = llm.tokenize(PROMPT.encode())
    llm.eval(tokens)
    before = llm.scores.copy()
    best = int(before[-1].argmax())

    def forbid(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        scores[best] = -np.inf
        return scores

    def other(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        assert scores[best] == -np.inf  # the first one's result
        return scores.copy()

    second = int(before[-1].argsort()[-2])
    assert llm.sample(temp=0, logits_processor=[forbid, other]) == second
    assert llm.sample(temp=0) == best
    assert np.array_equal(llm.scores, before)
    assert next(llm.generate(tokens, temp=0, logits_processor=[forbid])) == second
    assert next(llm.generate(tokens, temp=0)) == best


def test_a_minimum_of_tokens(make: Any) -> None:
    llm = make()
    end = {llm.token_eos(): 100.0}
    assert llm(PROMPT, **GREEDY, logit_bias=end)["usage"]["completion_tokens"] == 0
    # the sampler adds the bias to what the processor returns, and minus infinity stays
    kwargs = {"logit_bias": end, "logits_processor": [MinTokensLogitsProcessor(3, llm.token_eos())]}
    result = llm(PROMPT, **GREEDY, **kwargs)
    assert result["usage"]["completion_tokens"] == 3
    assert result["choices"][0]["finish_reason"] == "stop"


def test_an_error_of_a_processor_comes_out_and_the_object_stays_usable(make: Any) -> None:
    llm = make()
    text = text_of(llm(PROMPT, **GREEDY))

    def fail(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        llm(PROMPT, logits_processor=[fail])
    with pytest.raises(ValueError, match="expected an array of 49152 values"):
        llm(PROMPT, logits_processor=[lambda ids, scores: scores[:10]])
    assert text_of(llm(PROMPT, **GREEDY)) == text


@pytest.mark.parametrize("stream", [False, True])
def test_a_stopping_criterion_ends_a_completion(make: Any, stream: bool) -> None:
    llm = make()
    n_prompt = len(llm.tokenize(PROMPT.encode()))

    def enough(ids: np.ndarray, logits: np.ndarray) -> bool:
        assert logits.shape == (llm.n_vocab(),)
        return len(ids) >= n_prompt + 3

    criteria = StoppingCriteriaList([lambda ids, logits: False, enough])
    found = llm.create_completion(PROMPT, **GREEDY, stopping_criteria=criteria, stream=stream)
    found = list(found) if stream else [found]
    whole = text_of(llm(PROMPT, **GREEDY))
    text = "".join(map(text_of, found))
    assert whole.startswith(text)
    assert len(llm.tokenize(text.encode(), add_bos=False)) == 3
    assert found[-1]["choices"][0]["finish_reason"] == "stop"


def test_logprobs_are_the_log_softmax_of_the_logits(make: Any) -> None:
    llm = make()
    found = llm(PROMPT, **GREEDY, logprobs=3, logit_bias={260: 5.0}, repeat_penalty=1.3)["choices"][0]
    logprobs = found["logprobs"]
    tokens = llm.tokenize(PROMPT.encode())
    generated = llm.tokenize(found["text"].encode(), add_bos=False)
    rows = make().logits(tokens + generated, first=len(tokens) - 1)
    for i, token in enumerate(generated):
        exact = log_softmax(rows[i])
        # generation decodes one token at a time, logits() all: other kernels, in float32
        assert logprobs["token_logprobs"][i] == pytest.approx(exact[token], abs=1e-3)
        best = exact.argsort()[::-1][:3].tolist()
        top = logprobs["top_logprobs"][i]
        for other in best:
            assert top[llm.detokenize([other]).decode()] == pytest.approx(exact[other], abs=1e-3)
        assert set(top) == {llm.detokenize([other]).decode() for other in [*best, token]}
    assert logprobs["tokens"] == [llm.detokenize([t]).decode() for t in generated]
    offsets = [len(PROMPT) + len(llm.detokenize(generated[:i]).decode()) for i in range(len(generated))]
    assert logprobs["text_offset"] == offsets


def test_logits_to_logprobs(make: Any) -> None:
    rows = np.array([[1.0, -2.0, 30.0], [-np.inf, 0.0, 0.0]], np.float32)
    found = make(vocab_only=True).logits_to_logprobs(rows)
    assert found.dtype == np.float32
    assert np.allclose(found[0], log_softmax(rows[0]), atol=1e-6)
    assert np.allclose(found[1], [-np.inf, -np.log(2), -np.log(2)])
    columns = make(vocab_only=True).logits_to_logprobs(rows[:1].T, axis=0)
    assert np.array_equal(columns[:, 0], found[0])


def test_echo(make: Any) -> None:
    llm = make()
    tokens = llm.tokenize(PROMPT.encode())
    text = text_of(llm(PROMPT, **GREEDY))
    found = llm(PROMPT, **GREEDY, echo=True, logprobs=1)["choices"][0]
    assert found["text"] == PROMPT + text
    logprobs = found["logprobs"]
    assert "".join(logprobs["tokens"]) == found["text"]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    rows = make().logits(tokens)
    for i in range(1, len(tokens)):
        assert logprobs["token_logprobs"][i] == pytest.approx(log_softmax(rows[i - 1])[tokens[i]], abs=1e-3)
    assert logprobs["text_offset"][: len(tokens)] == [
        len(llm.detokenize(tokens[:i])) for i in range(len(tokens))
    ]
    pieces = [text_of(p) for p in llm.create_completion(PROMPT, **GREEDY, echo=True, stream=True)]
    assert pieces[0] == PROMPT
    assert "".join(pieces) == PROMPT + text


def test_a_suffix_is_put_between_the_tokens_for_filling_in(make: Any) -> None:
    llm = make(kv_overrides=FIM)
    before, after = (llm.tokenize(part, add_bos=False) for part in (b"def add(a, b):", b"\n\nprint(1)"))
    result = llm("def add(a, b):", suffix="\n\nprint(1)", **GREEDY)
    assert llm.input_ids[: len(before) + len(after) + 3].tolist() == [8, *before, 9, *after, 10]
    assert result["usage"]["prompt_tokens"] == len(before) + len(after) + 3
    assert text_of(result) == text_of(llm([8, *before, 9, *after, 10], **GREEDY))
    with pytest.raises(ValueError, match="suffix: this model has no tokens for filling in"):
        make()("x", suffix="y")


def test_a_prompt_of_tokens_is_taken_as_it_is(make: Any) -> None:
    llm = make()
    tokens = llm.tokenize(PROMPT.encode())
    assert text_of(llm(tokens, **GREEDY)) == text_of(llm(PROMPT, **GREEDY))
    assert text_of(llm(np.array(tokens), **GREEDY)) == text_of(llm(PROMPT, **GREEDY))
    assert text_of(llm("", max_tokens=1, temperature=0)) == text_of(
        llm([llm.token_bos()], max_tokens=1, temperature=0)
    )


def test_generation_ends_where_the_context_is_full(make: Any, tiny: Path) -> None:
    llm = make(tiny, n_ctx=256)
    prompt = llm.tokenize(b"one two " * 110)[:200]
    result = llm(prompt, max_tokens=None, temperature=0, logit_bias={llm.token_eos(): -100, 0: -100})
    assert result["usage"]["completion_tokens"] == 56
    assert result["choices"][0]["finish_reason"] == "length"
    with pytest.raises(ValueError, match=r"Requested tokens \(256\) exceed context window of 256"):
        llm(llm.tokenize(b"one two " * 200)[:256])


def test_generate(make: Any) -> None:
    llm = make()
    prompt = llm.tokenize(PROMPT.encode())
    stream = llm.generate(prompt, temp=0)
    first, second = next(stream), next(stream)
    rows = make().logits([*prompt, first])
    assert [first, second] == rows[-2:].argmax(1).tolist()
    # what is sent comes after the token that was yielded
    sent = llm.tokenize(b" or rather", add_bos=False)
    third = stream.send(sent)
    held = [*prompt, first, second, *sent]
    assert llm.input_ids.tolist() == held
    assert third == make().logits(held)[-1].argmax()
    stream.close()
    more = llm.tokenize(b" and so", add_bos=False)
    fourth = next(llm.generate(more, temp=0, reset=False))
    assert llm.input_ids.tolist() == held + more
    assert fourth == make().logits(held + more)[-1].argmax()


def test_a_stream_does_not_go_on_after_something_else(make: Any) -> None:
    llm = make()
    stream = llm.create_completion(PROMPT, **GREEDY, stream=True)
    next(stream)
    llm.eval(llm.tokenize(b"x"))
    with pytest.raises(RuntimeError, match="did something else in between"):
        list(stream)
    assert text_of(llm(PROMPT, **GREEDY)) == text_of(make()(PROMPT, **GREEDY))


def test_sampling_by_hand(make: Any) -> None:
    llm = make()
    with pytest.raises(RuntimeError, match="there are no logits to sample from"):
        llm.sample()
    tokens = llm.tokenize(PROMPT.encode())
    llm.eval(tokens)
    rows = make().logits(tokens)
    assert llm.sample(temp=0) == llm.sample(top_k=1) == rows[-1].argmax()
    assert llm.n_tokens == len(tokens)
    llm.truncate(3)
    assert llm.input_ids.tolist() == tokens[:3]
    with pytest.raises(RuntimeError, match="there are no logits to sample from"):
        llm.sample()
    llm.eval(tokens[3:])
    assert llm.sample(temp=0) == rows[-1].argmax()
    llm.reset()
    assert llm.n_tokens == 0


def test_scores_are_the_logits_of_what_is_held(make: Any) -> None:
    llm = make(logits_all=True)
    tokens = llm.tokenize(PROMPT.encode())
    llm.eval(tokens[:3])
    llm.eval(tokens[3:])
    assert llm.scores.shape == (len(tokens), llm.n_vocab())
    exact = make().logits(tokens)
    assert np.abs(llm.scores - exact).max() < 1e-2  # two batches instead of one, in float32
    assert list(llm.eval_tokens) == tokens
    llm.truncate(2)
    assert llm.scores.shape == (2, llm.n_vocab())
    assert make().scores.shape[0] == 0


def test_seeds(make: Any) -> None:
    hot = {"temperature": 1.5, "top_p": 1.0, "top_k": 0, "max_tokens": 12}
    first, second = make(seed=7), make(seed=7)
    runs = [[text_of(llm(PROMPT, **hot)) for _ in range(2)] for llm in (first, second)]
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][1]
    first.set_seed(7)
    assert text_of(first(PROMPT, **hot)) == runs[0][0]
