"""With nothing left out the library is upstream's, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from comparison.builds import Build
from comparison.libllama import STATE_ROADS, Library, Override
from comparison.oracle import logits


@pytest.mark.parametrize("flash", ["off", "on", "auto"])
def test_logits_are_the_unpatched_librarys(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int], flash: str
) -> None:
    expected = stock.worker.call(logits, smollm2, tokens, flash=flash)
    assert np.isfinite(expected).all()
    for overrides in ({}, {"skip.layers": "none"}):
        assert np.array_equal(ours.worker.call(logits, smollm2, tokens, overrides, flash=flash), expected)


def test_two_threads_change_nothing(stock: Build, ours: Build, smollm2: Path, tokens: list[int]) -> None:
    expected = stock.worker.call(logits, smollm2, tokens[:20], n_threads=2)
    assert np.array_equal(ours.worker.call(logits, smollm2, tokens[:20], n_threads=2), expected)


def saved_states(
    lib: Library, path: Path, tokens: list[int], folder: Path, overrides: Override = ()
) -> dict[str, bytes]:
    model = lib.model(path, overrides)
    ctx = model.context(n_seq_max=2)
    ctx.decode(tokens[:20])
    ctx.decode(tokens[20:24])
    states = {road: ctx.save(road, folder / road, tokens[:24]) for road in STATE_ROADS}
    for road, data in states.items():
        assert ctx.restore(road, folder / "again", data), road
    ctx.close()
    model.close()
    return states


def test_saved_states_are_the_unpatched_librarys(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int], tmp_path: Path
) -> None:
    expected = stock.worker.call(saved_states, smollm2, tokens, tmp_path)
    assert all(expected.values())
    assert ours.worker.call(saved_states, smollm2, tokens, tmp_path) == expected
    assert ours.worker.call(saved_states, smollm2, tokens, tmp_path, {"skip.layers": "none"}) == expected


def mask_and_back(lib: Library, path: Path, tokens: list[int], folder: Path) -> dict[str, bytes]:
    model = lib.model(path)
    ctx = model.context(n_seq_max=2)
    ctx.mask("3")
    ctx.decode(tokens[:5])
    ctx.c.llama_memory_clear(ctx.memory, True)
    ctx.mask(None)
    ctx.decode(tokens[:20])
    ctx.decode(tokens[20:24])
    states = {road: ctx.save(road, folder / road, tokens[:24]) for road in STATE_ROADS}
    ctx.close()
    model.close()
    return states


def test_a_mask_that_was_lifted_leaves_no_trace_in_states(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int], tmp_path: Path
) -> None:
    expected = stock.worker.call(saved_states, smollm2, tokens, tmp_path)
    assert ours.worker.call(mask_and_back, smollm2, tokens, tmp_path) == expected
