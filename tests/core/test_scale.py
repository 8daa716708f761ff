"""A scale multiplies the residual stream once per gap.

Two independent calculations, both without tolerance. The stream that the block behind a gap reads is one
float32 product of what it reads on the unpatched library with the zeroed file: IEEE 754 rounds it in one
way only. And for powers of two the whole calculation has a twin: with eps = 0 a norm is exactly scale
invariant under them, so the zeroed file, in which all that is written to the stream behind the gap is
divided by A, gives the same logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize
from support.shared.streams import streams

from comparison.builds import Build
from comparison.libllama import LlamaError
from comparison.oracle import (
    WRITERS,
    TensorInfo,
    changed_copy,
    expand,
    logits,
    rewritten_copy,
    skip,
    times_power_of_two,
)

EPS = "llama.attention.layer_norm_rms_epsilon"


@pytest.mark.parametrize(
    ("layers", "scale", "gap", "behind", "factor"),
    [
        ("13-14", "0.9", 13, 15, 0.9),
        ("13-14", "13:-1.37", 13, 15, -1.37),
        ("0", "1.1", 0, 1, 1.1),
        ("0-3", "0:0.5", 0, 4, 0.5),
        ("29", "1.25e-1", 29, 30, 0.125),
        ("27-29", "27:3.3", 27, 30, 3.3),
    ],
)
def test_the_stream_behind_a_gap_is_one_product(
    stock: Build,
    ours: Build,
    smollm2: Path,
    tokens: list[int],
    zeroed: Any,
    layers: str,
    scale: str,
    gap: int,
    behind: int,
    factor: float,
) -> None:
    before = stock.worker.call(streams, zeroed(expand(layers)), tokens[:20])
    after = ours.worker.call(streams, smollm2, tokens[:20], skip(layers, scale))
    assert sorted(after) == [il for il in range(31) if il not in expand(layers)]
    for il in range(gap):
        assert np.array_equal(after[il], before[il])
    assert np.array_equal(after[behind], np.float32(factor) * before[behind])
    assert np.abs(before[behind]).max() > 0.1


def test_every_gap_has_its_own_scale(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int], zeroed: Any
) -> None:
    layers = "0,13-14,25"
    plain = stock.worker.call(streams, zeroed(expand(layers)), tokens[:20])
    one = ours.worker.call(streams, smollm2, tokens[:20], skip(layers, "0:2"))
    two = ours.worker.call(streams, smollm2, tokens[:20], skip(layers, "13:0.7;0:2"))
    three = ours.worker.call(streams, smollm2, tokens[:20], skip(layers, "0:2,13:0.7,25:1.3"))
    assert np.array_equal(one[1], 2 * plain[1])
    assert np.array_equal(two[12], one[12])
    assert np.array_equal(two[15], np.float32(0.7) * one[15])
    assert np.array_equal(three[24], two[24])
    assert np.array_equal(three[26], np.float32(1.3) * two[26])
    # one number is every gap's
    every = ours.worker.call(logits, smollm2, tokens[:20], skip(layers, "0.7"))
    each = ours.worker.call(logits, smollm2, tokens[:20], skip(layers, "0:0.7,13:0.7,25:0.7"))
    assert np.array_equal(every, each)


@pytest.mark.parametrize("flash", ["off", "on"])
@pytest.mark.parametrize(("layers", "factor"), [("13-14", 0.5), ("13-14", 2.0), ("13", 1 / 8), ("29", 0.5)])
def test_logits_of_a_power_of_two_are_those_of_its_twin(
    stock: Build,
    ours: Build,
    smollm2: Path,
    tokens: list[int],
    tmp_path: Path,
    layers: str,
    factor: float,
    flash: str,
) -> None:
    out = expand(layers)

    def change(t: TensorInfo, data: bytes) -> bytes | None:
        if t.block is None or not WRITERS.fullmatch(t.name):
            return None
        if t.block in out:
            return bytes(t.size)
        return times_power_of_two(t, data, 1 / factor) if t.block > out[-1] else None

    twin = changed_copy(smollm2, tmp_path / "twin.gguf", change)
    expected = stock.worker.call(logits, twin, tokens[:20], {EPS: 0.0}, flash=flash)
    found = ours.worker.call(
        logits, smollm2, tokens[:20], {**skip(layers, str(factor)), EPS: 0.0}, flash=flash
    )
    assert np.array_equal(found, expected)
    if layers != "29":  # the output norm takes any factor away again
        assert not np.array_equal(
            found, ours.worker.call(logits, smollm2, tokens[:20], {**skip(layers), EPS: 0.0}, flash=flash)
        )


def scaled_embeddings(path: Path, copy: Path, factor: float) -> Path:
    """SmolLM2 without block 0, its embeddings in float32 times `factor`, its output weights as they were."""

    def change(name: str, data: np.ndarray) -> dict[str, np.ndarray]:
        if name == "token_embd.weight":
            values = dequantize(data, GGMLQuantizationType.Q8_0)
            return {name: np.float32(factor) * values, "output.weight": data}
        return {name: np.zeros_like(data) if name.startswith("blk.0.") and WRITERS.fullmatch(name) else data}

    return rewritten_copy(path, copy, change)


@pytest.mark.parametrize("factor", [0.83, 1.9])
def test_logits_of_a_gap_at_block_0_are_those_of_scaled_embeddings(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int], tmp_path: Path, factor: float
) -> None:
    file = scaled_embeddings(smollm2, tmp_path / "scaled.gguf", factor)
    expected = stock.worker.call(logits, file, tokens[:20])
    found = ours.worker.call(logits, smollm2, tokens[:20], skip("0", str(factor)))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("layers", ["13-14,25", "0", "29"])
@pytest.mark.parametrize("scale", ["1", "1.0", "1e0"])
def test_scale_1_is_no_scale(ours: Build, smollm2: Path, tokens: list[int], layers: str, scale: str) -> None:
    expected = ours.worker.call(logits, smollm2, tokens[:20], skip(layers))
    assert np.array_equal(ours.worker.call(logits, smollm2, tokens[:20], skip(layers, scale)), expected)


def test_the_scale_may_be_a_number(ours: Build, smollm2: Path, tokens: list[int]) -> None:
    expected = ours.worker.call(logits, smollm2, tokens[:20], skip("13", "0.3"))
    for value in (0.3, "13:0.3"):
        found = ours.worker.call(logits, smollm2, tokens[:20], {"skip.layers": 13, "skip.scale": value})
        assert np.array_equal(found, expected), value


def test_a_small_scale_given_as_a_number_keeps_its_digits(
    ours: Build, smollm2: Path, tokens: list[int]
) -> None:
    expected = ours.worker.call(logits, smollm2, tokens[:20], skip("13", "0.123456789"))
    found = ours.worker.call(logits, smollm2, tokens[:20], {"skip.layers": "13", "skip.scale": 0.123456789})
    assert np.array_equal(found, expected)


def test_a_scale_needs_a_gap(ours: Build, smollm2: Path) -> None:
    with pytest.raises(LlamaError, match=r"skip\.scale"):
        ours.worker.call(logits, smollm2, [1, 2, 3, 4, 5, 6, 7], {"skip.scale": "0.5"})
