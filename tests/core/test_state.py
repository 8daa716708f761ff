"""A saved state belongs to its set, scales and mask: every other context refuses it, on every road."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.shared.states import cross, open_context

from comparison.builds import Build
from comparison.libllama import STATE_ROADS, Library, LlamaError


def test_states_never_cross_contexts_that_leave_out_otherwise(
    ours: Build, smollm2: Path, tokens: list[int], tmp_path: Path
) -> None:
    assert ours.worker.call(cross, smollm2, tokens, tmp_path) == []


def restored_elsewhere(
    lib: Library, path: Path, tokens: list[int], folder: Path, name: str, road: str
) -> tuple[np.ndarray, np.ndarray]:
    first, second = (open_context(lib, path, name) for _ in range(2))
    first.decode(tokens[:10])
    state = first.save(road, folder / "state", tokens[:10])
    seq = 1 if road.startswith("seq") else 0
    assert second.restore(road, folder / "state", state, seq)
    return first.decode(tokens[10:14]), second.decode(tokens[10:14], seq=seq)


@pytest.mark.parametrize("name", ["skip 13 scaled", "skip 13, mask 20", "mask 13 scaled"])
@pytest.mark.parametrize("road", STATE_ROADS)
def test_a_context_that_leaves_out_the_same_goes_on_from_a_state(
    ours: Build, smollm2: Path, tokens: list[int], tmp_path: Path, name: str, road: str
) -> None:
    expected, found = ours.worker.call(restored_elsewhere, smollm2, tokens, tmp_path, name, road)
    assert np.array_equal(found, expected)


def mask_lifted_after_restore(
    lib: Library, path: Path, tokens: list[int], folder: Path, road: str
) -> list[str]:
    source, ctx = (open_context(lib, path, "mask 13") for _ in range(2))
    source.decode(tokens[:10])
    assert ctx.restore(road, folder / "state", source.save(road, folder / "state", tokens[:10]))
    ctx.mask(None)
    facts = []
    try:
        ctx.decode(tokens[10:12])
    except LlamaError as error:
        facts.append(str(error))
    saved = ctx.save(road, folder / "late", tokens[:10])
    facts.append("saved" if saved else "not saved")
    assert ctx.c.llama_memory_seq_rm(ctx.memory, 0, -1, -1)
    ctx.decode(tokens[:4])
    return facts


@pytest.mark.parametrize("road", STATE_ROADS)
def test_restored_tokens_still_lack_the_masked_blocks(
    ours: Build, smollm2: Path, tokens: list[int], tmp_path: Path, road: str
) -> None:
    refused, saved = ours.worker.call(mask_lifted_after_restore, smollm2, tokens, tmp_path, road)
    assert "decoded while blocks 13 were masked" in refused
    assert saved == "not saved"


def restored_by_others(
    lib: Library, path: Path, other: Path, tokens: list[int], folder: Path, road: str
) -> bool:
    source, target = (open_context(lib, p, "skip 13 scaled") for p in (path, other))
    source.decode(tokens[:10])
    saved = source.save(road, folder / "state", tokens[:10])
    return bool(target.restore(road, folder / "state", saved))


@pytest.mark.parametrize("road", STATE_ROADS)
def test_other_weights_refuse_a_state(
    ours: Build,
    smollm2: Path,
    zeroed: Callable[[list[int]], Path],
    tokens: list[int],
    tmp_path: Path,
    road: str,
) -> None:
    args = (tokens, tmp_path, road)
    assert ours.worker.call(restored_by_others, smollm2, smollm2, *args)
    assert not ours.worker.call(restored_by_others, smollm2, zeroed([5]), *args)
