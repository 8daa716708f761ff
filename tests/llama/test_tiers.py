"""Completions at a depth of their own: what each token was decoded under, and what that makes of the next."""

from __future__ import annotations

import collections
import gc
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_skip import Llama
from support.matrix.arch_files import Base, write
from support.matrix.arch_files import make as base_model
from support.plan_files import random_bypass, write_gguf
from support.shared.counter import Counter
from support.shared.masks import Steps, across_files

from comparison.builds import Build

PROMPT = "The first train left the harbour town before sunrise, and nobody"
GREEDY = {"temperature": 0.0, "max_tokens": 6}
TIERS = {"fast": "13-14,25", "attn": {"attn": [3, 20]}, "ffn": [(5, "ffn"), (6, "ffn")]}


def text_of(completion: Any) -> str:
    text: str = completion["choices"][0]["text"]
    return text


class Batches:
    """What a context decodes: position, tokens, and what was left out, of each batch."""

    def __init__(self, llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: list[tuple[int, list[int], str]] = []
        self.cells: list[tuple[int, str]] = []  # token and mask of each position
        history = llm._history
        append = history._append

        def recorded(tokens: Any, decode: Any) -> Any:
            def seen(array: np.ndarray, pos: int) -> Any:
                result = decode(array, pos)
                mask = history.context.mask
                self.found.append((pos, array.tolist(), mask))
                self.cells[pos:] = [(token, mask) for token in array.tolist()]
                return result

            return append(tokens, seen)

        monkeypatch.setattr(history, "_append", recorded)

    def replay(self, llm: Any) -> np.ndarray:
        """Decode what came since the last time with set_mask() and eval() alone; return all that is held."""
        new, self.found = self.found, []
        for pos, tokens, mask in new:
            if pos < llm.n_tokens:
                llm.truncate(pos)
            assert llm.n_tokens == pos
            llm.set_mask(mask or None)
            llm.eval(tokens)
        rows: np.ndarray = llm.scores
        return rows


@pytest.mark.parametrize("spec", ["13-14,25", "3,20:attn", "5-9:ffn"])
def test_an_answer_is_that_of_the_unpatched_library(
    stock: Build, make: Any, smollm2: Path, zeroed: Any, spec: str
) -> None:
    """The prompt by the whole file, each token behind it by a file of zeros, on the state before."""
    llm = make(logits_all=True, tiers={"it": spec})
    n_prompt = len(llm.tokenize(PROMPT.encode()))
    text = text_of(llm(PROMPT, **GREEDY, skip_layers="it"))
    held = llm.input_ids.tolist()
    assert len(held) == n_prompt + 5
    steps: Steps = [
        (None, slice(0, n_prompt)),
        *((spec, slice(i, i + 1)) for i in range(n_prompt, len(held))),
    ]
    found = stock.worker.call(across_files, {None: smollm2, spec: zeroed(spec)}, held, steps, "off")
    rows = np.concatenate(found)
    assert np.array_equal(llm.scores, rows)
    chosen = rows[n_prompt - 1 :].argmax(1).tolist()
    assert chosen[:-1] == held[n_prompt:]
    assert llm.detokenize(chosen).decode() == text != text_of(llm(PROMPT, **GREEDY))


@pytest.mark.parametrize("name", TIERS)
def test_with_the_prompt_it_is_that_of_a_loaded_set(make: Any, name: str) -> None:
    llm, other = make(logits_all=True, tiers=TIERS), make(logits_all=True, skip_layers=TIERS[name])
    messages = [{"role": "user", "content": "Name a colour."}]
    calls: list[Callable[..., Any]] = [
        lambda m, **at: text_of(m(PROMPT, **GREEDY, **at)),
        lambda m, **at: m(PROMPT, **GREEDY, **at, echo=True, logprobs=2)["choices"],
        lambda m, **at: "".join(map(text_of, m(PROMPT, **GREEDY, **at, stream=True))),
        lambda m, **at: m.create_chat_completion(messages, **GREEDY, **at)["choices"],
        lambda m, **at: list(islice(m.generate([1, 338, 2], temp=0.0, **at), 3)),
    ]
    for call in calls:
        for form in (name, TIERS[name]):
            llm(PROMPT, **GREEDY)  # nothing of it is taken for the other depth
            assert call(llm, skip_layers=form, skip_prompt=True) == call(other)
            assert np.array_equal(llm.scores, other.scores)
            other.reset()
            assert llm.mask == ()


def test_text_of_an_answer_that_leaves_the_prompt_whole(make: Any) -> None:
    """The same in every way to ask, and what set_mask() between prompt and answer gives."""
    llm, by_hand = make(tiers=TIERS), make()
    prompt = llm.tokenize(PROMPT.encode())
    by_hand.eval(prompt)
    tokens = [by_hand.sample(temp=0)]
    by_hand.set_mask("13-14,25")
    while len(tokens) < GREEDY["max_tokens"]:
        by_hand.eval(tokens[-1:])
        tokens.append(by_hand.sample(temp=0))
    text = llm.detokenize(tokens).decode()
    assert text_of(llm(PROMPT, **GREEDY)) != text
    assert text_of(llm(prompt, **GREEDY, skip_layers="fast")) == text
    assert "".join(map(text_of, llm(PROMPT, **GREEDY, skip_layers=[13, 14, 25], stream=True))) == text
    assert list(islice(llm.generate(prompt, temp=0.0, skip_layers="25,13-14"), 6)) == tokens
    assert text_of(llm(PROMPT, **GREEDY, skip_layers="none")) == text_of(make()(PROMPT, **GREEDY))


@pytest.fixture(scope="module")
def paths(
    stock: Build, bases: dict[str, Base], tiny: Path, windows: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tiers")
    found = {"dense": tiny, "windows": windows}
    for kind, name in (("hybrid", "jamba-dense"), ("recurrent", "mamba2-dense")):
        model = base_model(stock, folder, bases, name)
        found[kind] = write(folder / f"{kind}.gguf", model.arch, model.metadata, model.tensors)
    return found


@pytest.mark.parametrize("swa_full", [True, False])
@pytest.mark.parametrize("kind", ["dense", "windows", "hybrid", "recurrent"])
def test_a_conversation_that_changes_depth(
    make: Any, paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str, swa_full: bool
) -> None:
    options = {"n_ctx": 256, "logits_all": True, "swa_full": swa_full, "skip_layers": "0:ffn"}
    if kind == "recurrent":
        options["skip_layers"] = "none"
    base = "" if kind == "recurrent" else "0:ffn"
    tiers = {"one": "1", "ffn": "1:ffn"} if kind in ("dense", "windows") else {"one": "1"}
    llm, by_hand = make(paths[kind], **options, tiers=tiers), make(paths[kind], **options)
    batches = Batches(llm, monkeypatch)
    random = np.random.default_rng(3)
    talk = [3 + i % 50 for i in range(30)]
    seen: set[str] = set()
    kept: dict[int, str] = {}  # what was generated without feed-forwards alone stays as it was
    for turn, (name, skip_prompt) in enumerate(
        zip(
            [None, "one", "ffn", "one", "one", "ffn", "ffn", None, "one", "one", None, "ffn"],
            [False, False, False, True, True, True, False, False, False, False, True, False],
            strict=True,
        )
    ):
        name = name if name in tiers else name and "one"
        mask = llm.tiers[name] if name else base
        n_prompt = len(talk)
        n = int(random.integers(2, 5))
        stream = llm.generate(talk, temp=0.0, skip_layers=name, skip_prompt=skip_prompt)
        answer = list(islice(stream, n))
        held = [*talk, *answer[:-1]]
        assert [token for token, _ in batches.cells] == llm.input_ids.tolist() == held
        of_prompt = mask if skip_prompt else base
        kept = {i: m for i, m in kept.items() if of_prompt == base and batches.cells[i][1] == m}
        for i, (_, under) in enumerate(batches.cells):
            assert under == (kept.get(i, of_prompt) if i < n_prompt else mask), (turn, i)
        seen |= {mask for _, _, mask in batches.found}
        rows = batches.replay(by_hand)
        assert np.array_equal(llm.scores[n_prompt - 1 :], rows[n_prompt - 1 :]), turn
        assert rows[n_prompt - 1 :].argmax(1).tolist() == answer
        if name == "ffn" and not skip_prompt:
            kept |= {i: mask for i in range(n_prompt, len(held))}
        talk = [*talk, *answer, *random.integers(3, 60, 3).tolist()]
        assert llm.skip_layers == llm.mask
    assert len(seen) == 1 + len(tiers)


def test_what_is_evaluated_when_a_conversation_goes_on(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = make(tiers=TIERS)
    counter = Counter(llm, monkeypatch)
    prompt = llm.tokenize(PROMPT.encode())
    for name, again in (("ffn", 0), ("fast", 5), ("attn", 5)):
        llm.reset()
        llm(prompt, **GREEDY, skip_layers=name)
        assert counter.take() == len(prompt) + 5
        for other, tail in ((name, [28, 253]), (None, [260, 28])):
            more = [*llm.input_ids.tolist()[: len(prompt) + 5], *tail]
            llm(more, max_tokens=1, skip_layers=other)
            assert counter.take() == again + 2
            again = 0
        llm(prompt, max_tokens=1, skip_layers="attn")  # all depths share what the prompt left
        assert counter.take() == 1


def test_a_prompt_that_is_held_at_another_depth(make: Any) -> None:
    """Exactly its tokens are there, with logits: those of what was asked for last."""
    llm, other = make(tiers=TIERS), make()
    llm(PROMPT, **GREEDY, skip_layers="ffn")
    held = llm.input_ids.tolist()
    assert llm._history._logits_tag == "mask 5-6:ffn"
    llm.generate(held, temp=0.0).send(None)
    assert llm._history._logits_tag == ""
    llm(PROMPT, **GREEDY, skip_layers="fast")
    held = llm.input_ids.tolist()
    assert text_of(llm(held, **GREEDY)) == text_of(other(held, **GREEDY))
    llm(PROMPT, **GREEDY, skip_layers="fast")
    held = llm.input_ids.tolist()
    masked = make(skip_layers=TIERS["fast"])(held, **GREEDY)
    assert text_of(llm(held, **GREEDY, skip_layers="fast", skip_prompt=True)) == text_of(masked)


def fail(ids: Any, logits: Any) -> Any:
    if len(ids) > 20:
        raise KeyError("mine")
    return logits


def test_the_mask_is_there_again_whatever_happens(make: Any, tokens: list[int]) -> None:
    llm = make(tiers=TIERS)
    llm.set_mask("20")
    fresh = make(skip_layers="20")
    expected = fresh.logits(tokens[:12])

    def check() -> None:
        assert llm.mask == (20,)
        assert np.array_equal(llm.logits(tokens[:12]), expected)

    llm(PROMPT, **GREEDY, skip_layers="fast", skip_prompt=True)
    check()
    for kwargs in ({}, {"skip_prompt": True}):
        with pytest.raises(KeyError, match="mine"):
            llm(PROMPT, skip_layers="fast", logits_processor=[fail], temperature=0, max_tokens=40, **kwargs)
        check()
    with pytest.raises(ValueError, match="Requested tokens"):
        llm([1] * 600, skip_layers="fast", skip_prompt=True)
    check()
    for leave in ("close", "delete", "between"):
        stream = llm(PROMPT, **GREEDY, skip_layers="fast", stream=True)
        next(stream), next(stream)
        assert llm.mask == (20,)
        if leave == "close":
            stream.close()
        elif leave == "delete":
            del stream
            gc.collect()
        check()
        if leave == "between":
            with pytest.raises(RuntimeError, match="something else in between"):
                list(stream)
            check()
    stream = llm(PROMPT, **GREEDY, skip_layers="fast", stream=True)
    next(stream), next(stream)
    llm.set_mask("21")
    with pytest.raises(RuntimeError, match="something else in between"):
        list(stream)
    assert llm.mask == (21,)
    assert np.array_equal(llm.logits(tokens[:12]), make(skip_layers="21").logits(tokens[:12]))


def test_a_full_context_at_a_tier(make: Any, paths: dict[str, Path]) -> None:
    for kind in ("dense", "recurrent"):
        llm = make(paths[kind], n_ctx=256, tiers={"one": "1"})
        stream = llm.generate([5] * 250, temp=0.0, skip_layers="one")
        with suppress(RuntimeError):  # a recurrent one has room for ever
            list(islice(stream, 8))
        assert llm.mask == ()
        assert np.array_equal(llm.logits([1, 2, 3]), make(paths[kind], n_ctx=256).logits([1, 2, 3]))


def test_a_request_leaves_out_what_is_left_out_anyway(make: Any) -> None:
    at = {**GREEDY, "skip_prompt": True}
    exact = {"flash_attn": True}  # then tokens do not depend on what they are decoded with
    llm = make(skip_layers="4", tiers={"ffn": "5-6:ffn"}, **exact)
    assert llm.tiers == {"ffn": "4,5-6:ffn"}
    llm.set_mask("20,5:attn")
    for asked, in_all in (("ffn", "4,20,5:attn,5-6:ffn"), ("none", "4,20,5:attn"), ("20", "4,20,5:attn")):
        assert text_of(llm(PROMPT, **at, skip_layers=asked)) == text_of(
            make(skip_layers=in_all, **exact)(PROMPT, **GREEDY)
        )
    assert llm.mask == (4, 20, (5, "attn"))
    # what stands in the gaps of the mask in force stays there, or the request is refused
    llm.set_mask("20", 0.5)
    scaled = text_of(make(skip_layers="4,20", skip_scale={4: 0.5, 20: 0.5}, **exact)(PROMPT, **GREEDY))
    for asked in ("20", "none", "4"):
        assert text_of(llm(PROMPT, **at, skip_layers=asked)) == scaled
    with pytest.raises(ValueError, match="skip_layers: 4,21 and the mask in force, 4,20, cannot be joined"):
        llm(PROMPT, skip_layers="21")
    with pytest.raises(ValueError, match="skip_layers: every block is left out"):
        llm(PROMPT, skip_layers="0-3,5-29")
    assert text_of(llm(PROMPT, **GREEDY)) == scaled


def test_plans_as_tiers(make: Any, tiny: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.gguf" for name in ("plain", "healed")}
    write_gguf(files["plain"], tiny, "1", [], arch="qwen3")
    write_gguf(files["healed"], tiny, "2", [random_bypass(2, 64)], arch="qwen3")
    tiers = {name: f"@{path}" for name, path in files.items()}
    at = {**GREEDY, "skip_prompt": True}
    expected = {name: text_of(make(tiny, skip_layers=tier)(PROMPT, **GREEDY)) for name, tier in tiers.items()}
    llm = make(tiny, tiers=tiers)
    assert llm.tiers == {"plain": "1", "healed": "2"}
    for name in (*tiers, *tiers):
        assert text_of(llm(PROMPT, **at, skip_layers=name)) == expected[name]
    llm.set_mask("2")  # without a bypass
    assert text_of(llm(PROMPT, **at, skip_layers="healed")) == expected["healed"]
    llm.set_mask(tiers["healed"])
    assert text_of(llm(PROMPT, **GREEDY, skip_layers="none")) == expected["healed"]
    llm.set_mask(None)
    plain = text_of(llm(PROMPT, **GREEDY))
    # only a bypass needs its file again, and it has to be the same
    write_gguf(files["healed"], tiny, "2", [random_bypass(2, 64, seed=2)], arch="qwen3")
    with pytest.raises(RuntimeError, match=r"the plan '@.*healed.gguf' has changed since"):
        llm(PROMPT, **GREEDY, skip_layers="healed")
    for path in files.values():
        path.unlink()
    with pytest.raises(ValueError, match=r"healed\.gguf"):
        llm(PROMPT, **GREEDY, skip_layers="healed")
    assert text_of(llm(PROMPT, **at, skip_layers="plain")) == expected["plain"]
    assert text_of(llm(PROMPT, **GREEDY)) == plain


def test_states_and_tiers(make: Any, tokens: list[int]) -> None:
    llm = make(tiers=TIERS)
    llm(PROMPT, **GREEDY, skip_layers="ffn")
    held = llm.input_ids.tolist()
    state = llm.save_state()
    other = make()
    other.load_state(state)
    llm.eval([28]), other.eval([28])
    assert other.input_ids.tolist() == [*held, 28]
    assert llm.sample(temp=0) == other.sample(temp=0)
    llm(PROMPT, **GREEDY, skip_layers="fast")
    for use in (llm.save_state, lambda: llm.eval([28])):
        with pytest.raises(RuntimeError, match="were masked"):
            use()
    llm.truncate(4)
    llm.eval(tokens[4:8])
    assert llm.n_tokens == 8


def test_sampling_after_a_set_was_looked_up(make: Any, tokens: list[int]) -> None:
    llm = make(tiers=TIERS)
    llm.eval(tokens[:9])
    stream = llm.generate(tokens[:9], temp=0.0, skip_layers="20")  # not begun
    assert llm.sample(temp=0) == make().logits(tokens[:9])[-1].argmax() == next(stream)


def kld(logits: np.ndarray, reference: np.ndarray) -> float:
    p, q = (x.astype(np.float64) - x.max(1, keepdims=True) for x in (reference, logits))
    p, q = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (p, q))
    return float((np.exp(p) * (p - q)).sum(1).mean())


@pytest.mark.parametrize("kind", ["dense", "windows", "hybrid", "recurrent"])
@pytest.mark.parametrize("n_tokens", [1, 10, 64])
def test_a_probe_is_the_divergence_on_the_last_tokens(
    make: Any, paths: dict[str, Path], kind: str, n_tokens: int
) -> None:
    options = {"n_ctx": 256, "swa_full": False}
    llm = make(paths[kind], **options, tiers={"one": "1", "full": "none"})
    by_hand = make(paths[kind], **options, logits_all=True)
    prompt = [3 + i % 50 for i in range(40)]
    n = max(len(prompt) - n_tokens, 0)
    rows = {}
    for mask in (None, "1"):
        by_hand.reset()
        by_hand.set_mask(None)
        if n:
            by_hand.eval(prompt[:n])
        by_hand.set_mask(mask)
        by_hand.eval(prompt[n:])
        rows[mask] = by_hand.scores[n:].copy()
    assert rows[None].shape[0] == min(n_tokens, 40)
    expected = kld(rows["1"], rows[None])
    assert expected > 1e-3
    text = text_of(llm(prompt, **GREEDY, skip_layers="one"))
    for _ in range(2):
        found = llm.probe(prompt, n_tokens=n_tokens)
        # float32 exponentials: the error stays under 1e-6
        assert found == {"one": pytest.approx(expected, abs=1e-5), "full": 0.0}
        assert llm.input_ids.tolist() == prompt[:n] and llm.mask == ()
    assert text_of(llm(prompt, **GREEDY, skip_layers="one")) == text


def test_probes(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = make(tiers=TIERS)
    prompt = llm.tokenize(PROMPT.encode())
    found = llm.probe(PROMPT, n_tokens=8)
    assert list(found) == list(TIERS) and all(value > 0 for value in found.values())
    assert llm.probe(prompt, "fast", 8) == {"fast": found["fast"]}
    assert llm.probe(prompt, ["25,13-14", "none"], 8) == {"25,13-14": found["fast"], "none": 0.0}
    counter = Counter(llm, monkeypatch)
    llm.probe(prompt, ["fast", "ffn"], 8)
    assert counter.take() == 3 * 8
    assert llm.probe(prompt, [], 8) == {}
    llm.set_mask("13-14,25")
    assert llm.probe(prompt, "fast", 8) == {"fast": 0.0}
    for args, reason in (
        (([],), "prompt: empty"),
        ((prompt, "slow"), "skip_layers: 'slow' is no set and no tier; tiers: fast, attn, ffn"),
        ((prompt, "99"), "skip_layers: block 99 is out of range"),
        ((prompt, None, 0), "n_tokens: 0 is too small, the least is 1"),
        (([1] * 512,), "Requested tokens"),
    ):
        with pytest.raises(ValueError, match=reason):
            llm.probe(*args)
    for args in ((prompt, 3), (prompt, [3]), (prompt, None, "x")):
        with pytest.raises(TypeError):
            llm.probe(*args)


def test_an_encoder_has_no_probe(stock: Build, bases: dict[str, Base], make: Any, tmp_path: Path) -> None:
    model = base_model(stock, tmp_path, bases, "bert")
    llm = make(write(tmp_path / "bert.gguf", model.arch, model.metadata, model.tensors), n_ctx=64)
    with pytest.raises(RuntimeError, match="predicts no next token"):
        llm.probe([5, 6, 7], "1")


def test_names_of_tiers(make: Any, tiny: Path) -> None:
    names = ["a", "4bit.v-1_x", "x" * 64, "None", "1-2-3", "auto"]
    llm = make(tiny, tiers=dict.fromkeys(names, range(1, 3)))
    assert llm.tiers == dict.fromkeys(names, "1-2")
    assert all(llm([1], max_tokens=1, skip_layers=name) for name in names)
    with pytest.raises(TypeError):
        llm.tiers["b"] = "3"
    assert make(tiny).tiers == {}
    with pytest.raises(ValueError, match="'b' is no set and no tier; tiers: none"):
        make(tiny)([1], skip_layers="b")


blocks = st.integers(-2, 5) | st.integers() | st.booleans() | st.floats() | st.none() | st.text(max_size=3)
texts = st.text(max_size=12) | st.text("0123-+,;:afntoe@%.\0 ", max_size=12)
pairs = st.tuples(blocks, st.sampled_from(["attn", "ffn", "mlp", None, []]))
values = st.one_of(
    st.sampled_from(["fast", "none", "1,3:ffn", "2-3", [2], (3,), range(2), {"ffn": [1, 2]}, [(0, "attn")]]),
    texts,
    blocks,
    st.binary(max_size=4),
    st.lists(blocks | pairs, max_size=4),
    st.tuples(blocks, blocks, blocks),
    st.dictionaries(
        st.sampled_from(["attn", "ffn", "x", 3]), blocks | st.lists(blocks, max_size=3), max_size=2
    ),
    st.just(object()),
)


def test_a_thousand_values(tiny: Path) -> None:
    quiet = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    outcomes: collections.Counter[str] = collections.Counter()
    with Llama(tiny, **quiet, tiers={"fast": "1"}) as llm:
        text = text_of(llm([1, 2, 3], **GREEDY))

        @settings(
            max_examples=1000,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(value=values, skip_prompt=st.booleans())
        def run(value: Any, skip_prompt: bool) -> None:
            try:
                llm([1, 2, 3], max_tokens=2, skip_layers=value, skip_prompt=skip_prompt)
                outcomes["taken"] += 1
            except (ValueError, TypeError) as err:
                outcomes[type(err).__name__] += 1
                assert len(str(err)) > 10
            assert llm.mask == ()

        run()
        assert outcomes.total() >= 1000 and min(outcomes.values()) > 20
        assert text_of(llm([1, 2, 3], **GREEDY)) == text
