"""Hidden states and embeddings of the class Llama, against the file's own numbers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from support.matrix.arch_files import generated_one

from comparison.builds import Build
from comparison.oracle import tensors

UNKNOWN = "nemotron_h"
NONE, MEAN, CLS, LAST = range(4)  # of enum llama_pooling_type
TEXTS = ["a brass telescope", "The sea had disappeared behind the hills.", "x", "one two three four five"]


@cache
def matrix(path: Path, name: str) -> np.ndarray:
    t = next(t for t in tensors(path) if t.name == name)
    with path.open("rb") as file:
        file.seek(t.offset)
        data = np.frombuffer(
            file.read(t.size), np.float32 if t.type == GGMLQuantizationType.F32 else np.uint8
        )
    return dequantize(data.reshape(*t.shape[:0:-1], -1), t.type)


def rms_norm(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return rows / np.sqrt((rows.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5) * weight


@pytest.mark.parametrize(
    "layers", [None, "0-1,13-14,29", "14,0-1:attn,13:ffn", "0-1,28,2-3:attn,29:attn,0:ffn"]
)
def test_the_stream_from_the_embedding_to_the_logits(
    make: Any, smollm2: Path, tokens: list[int], layers: str | None
) -> None:
    llm = make(hidden_states=True, skip_layers=layers)
    found = llm.hidden_states(tokens[:12])
    kept = [il for il in range(30) if il not in llm.skip_layers]
    assert found.blocks == kept
    assert found.inputs.shape == found.outputs.shape == (len(kept), 12, 576)
    assert found.inputs.dtype == found.outputs.dtype == np.float32
    embedding = matrix(smollm2, "token_embd.weight")
    assert np.array_equal(found.inputs[0], embedding[tokens[:12]])
    assert np.array_equal(found.inputs[1:], found.outputs[:-1])
    assert llm.input_ids.tolist() == tokens[:12]
    # ggml rounds what it multiplies with a quantised matrix to 8 bits: half of 1/127 of the largest of 32
    normed = rms_norm(found.outputs[-1], matrix(smollm2, "output_norm.weight"))
    expected = normed @ embedding.astype(np.float64).T
    error = np.abs(llm.logits(tokens[:12]) - expected)
    assert error.max() < 0.02 * expected.std() * 5


def test_a_block_without_both_halves_adds_nothing(make: Any, tokens: list[int]) -> None:
    found = make(hidden_states=True, skip_layers="3:attn,3:ffn").hidden_states(tokens[:12])
    assert found.blocks == list(range(30))
    changed = [not np.array_equal(x, y) for x, y in zip(found.inputs, found.outputs, strict=True)]
    assert changed == [il != 3 for il in range(30)]


def test_hidden_states_do_not_change_the_logits_or_what_follows(make: Any, tokens: list[int]) -> None:
    plain, llm = make(), make(hidden_states=True)
    expected = plain.logits(tokens[:9])
    first = llm.hidden_states(tokens[:8])
    assert np.array_equal(llm.logits(tokens[:9]), expected)
    again = llm.hidden_states(tokens[:8])
    assert np.array_equal(first.outputs, again.outputs)
    prompt = plain.tokenize(b"The capital of France is")
    assert llm(prompt, temperature=0)["choices"] == plain(prompt, temperature=0)["choices"]


@pytest.mark.parametrize("is_mask", [False, True], ids=["load", "mask"])
def test_scales_of_gaps(make: Any, tokens: list[int], smollm2: Path, is_mask: bool) -> None:
    layers, scale = "0,13-14,29", {0: 0.5, 13: 0.75, 29: 1.5}
    llm = make(hidden_states=True, **({} if is_mask else {"skip_layers": layers, "skip_scale": scale}))
    if is_mask:
        llm.set_mask(layers, scale)
    found = llm.hidden_states(tokens[:8])
    assert found.blocks == [il for il in range(30) if il not in (0, 13, 14, 29)]
    embedding = matrix(smollm2, "token_embd.weight")[tokens[:8]]
    assert np.array_equal(found.inputs[0], np.float32(0.5) * embedding)
    gap = found.blocks.index(15)
    assert np.array_equal(found.inputs[gap], np.float32(0.75) * found.outputs[gap - 1])
    for i in set(range(1, len(found.blocks))) - {gap}:
        assert np.array_equal(found.inputs[i], found.outputs[i - 1])


def test_a_mask_gives_the_hidden_states_of_the_set(make: Any, tokens: list[int]) -> None:
    masked, loaded = make(hidden_states=True), make(hidden_states=True, skip_layers="3,13-14")
    masked.hidden_states(tokens[:8])
    masked.set_mask("3,13-14")
    one, two = masked.hidden_states(tokens[:8]), loaded.hidden_states(tokens[:8])
    assert one.blocks == two.blocks
    assert np.array_equal(one.inputs, two.inputs)
    assert np.array_equal(one.outputs, two.outputs)


def test_many_tokens_come_in_batches(make: Any, tokens: list[int]) -> None:
    small = make(hidden_states=True, n_batch=24, n_ubatch=8).hidden_states(tokens[:40])
    whole = make(hidden_states=True).hidden_states(tokens[:40])
    # other shapes of the same products, summed in another order
    assert np.abs(small.outputs - whole.outputs).max() < 1e-2 * np.abs(whole.outputs).max()
    assert np.array_equal(small.inputs[0], whole.inputs[0])


@pytest.mark.parametrize(
    ("arch", "factor"), [("olmo2", 1), ("exaone4", 1), ("phi2", 1), ("gemma2", 256**0.5), ("minicpm", 12)]
)
def test_what_enters_the_first_block(
    stock: Build, make: Any, tmp_path: Path, arch: str, factor: float
) -> None:
    """The embeddings, times the architecture's factor; the first two begin without a norm."""
    path = generated_one(stock, arch, tmp_path)
    found = make(path, hidden_states=True, n_ctx=64).hidden_states([1, 2, 3])
    embeddings = matrix(path, "token_embd.weight")[[1, 2, 3]]
    assert np.allclose(found.inputs[0], embeddings * np.float32(factor), rtol=1e-6, atol=0)


def test_an_architecture_that_names_the_stream_otherwise(stock: Build, make: Any, tmp_path: Path) -> None:
    path = generated_one(stock, UNKNOWN, tmp_path)
    llm = make(path, hidden_states=True, n_ctx=64)
    with pytest.raises(
        RuntimeError, match=f"it is not known what the graph of architecture '{UNKNOWN}' calls"
    ):
        llm.hidden_states([1, 2, 3])
    assert llm.n_tokens == 0
    assert np.array_equal(llm.logits([1, 2, 3]), make(path, n_ctx=64).logits([1, 2, 3]))


def test_hidden_states_have_to_be_asked_for(make: Any) -> None:
    with pytest.raises(RuntimeError, match="this context was created without hidden_states"):
        make().hidden_states([1, 2])


@pytest.mark.parametrize("pooling", [NONE, MEAN, CLS, LAST])
def test_embeddings_are_the_normed_stream(make: Any, smollm2: Path, pooling: int) -> None:
    llm = make(embedding=True, pooling_type=pooling, skip_layers="13-14")
    assert llm.pooling_type() == pooling
    stream = make(hidden_states=True, skip_layers="13-14")
    weight = matrix(smollm2, "output_norm.weight")
    many = llm.embed(TEXTS)
    for text, found in zip(TEXTS, many, strict=True):
        rows = rms_norm(stream.hidden_states(llm.tokenize(text.encode())).outputs[-1], weight)
        expected = {NONE: rows, MEAN: rows.mean(0), CLS: rows[0], LAST: rows[-1]}[pooling]
        assert np.shape(found) == expected.shape
        # many texts are computed at once, in other shapes, and rounded to 8 bits on the way
        assert np.abs(np.array(found) - expected).max() < 0.05 * np.abs(expected).max()
        alone = np.array(llm.embed(text))
        assert np.abs(alone - expected).max() < 1e-4 * np.abs(expected).max()
        unit = np.array(llm.embed(text, normalize=True))
        assert np.allclose(unit, alone / np.linalg.norm(alone, axis=-1, keepdims=True), atol=1e-6)
    assert llm.n_tokens == 0


def test_more_texts_than_one_batch_holds(make: Any) -> None:
    llm = make(embedding=True, pooling_type=MEAN, n_ctx=256, n_batch=16, n_ubatch=16)
    texts = TEXTS * 5
    found = llm.embed(texts)
    assert len(found) == 20
    alone = {text: np.array(llm.embed(text)) for text in TEXTS}
    for text, values in zip(texts, found, strict=True):
        one = alone[text]
        assert np.abs(np.array(values) - one).max() < 0.05 * np.abs(one).max()
    response = llm.create_embedding(texts[:2], model="mine")
    assert response["model"] == "mine"
    assert response["object"] == "list"
    assert [item["index"] for item in response["data"]] == [0, 1]
    assert response["usage"]["prompt_tokens"] == sum(len(llm.tokenize(t.encode())) for t in texts[:2])
    single = llm.create_embedding("x")
    assert single["data"][0]["embedding"] == llm.embed("x")
    assert single["model"] == llm.model_path


def test_more_texts_than_llama_cpp_has_sequences(make: Any, tiny: Path) -> None:
    llm = make(tiny, embedding=True, pooling_type=MEAN)
    found = np.array(llm.embed(["x"] * 300))
    assert found.shape == (300, llm.n_embd())
    assert np.abs(found - found[0]).max() <= 1e-3 * np.abs(found).max()  # other shapes, other sums


def test_texts_that_cannot_be_embedded(make: Any) -> None:
    llm = make(embedding=True, pooling_type=MEAN, n_ctx=256, n_batch=16, n_ubatch=16)
    with pytest.raises(ValueError, match="a text without tokens"):
        llm.embed(["x", ""])
    with pytest.raises(ValueError, match=r"Requested tokens \(\d+\) exceed batch size of 16"):
        llm.embed("one two " * 20, truncate=False)
    assert len(llm.embed("one two " * 20)) == 576
    assert llm.embed([]) == []
    with pytest.raises(RuntimeError, match="embeddings need Llama"):
        make().embed("x")
    with pytest.raises(RuntimeError, match="embeddings need Llama"):
        make().create_embedding("x")
