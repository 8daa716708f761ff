"""The greedy path with a linear map in each gap, against the long way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_skip import Llama
from llama_skip.bypass.bypass import TIERS
from llama_skip.bypass.file import write_bypasses
from llama_skip.files.identity import block_bytes, identify
from llama_skip.measure import perplexity, splits
from llama_skip.measure.text import read_text
from llama_skip.plan.annotate import score_entries
from llama_skip.plan.choose import plan_blocks
from llama_skip.score import score as scoring
from llama_skip.score.file import Score
from llama_skip.score.healing_runner import HealingRunner
from llama_skip.score.runner import Runner
from support.shared.scores import N_BLOCKS, N_CTX, N_WINDOWS, Stop, model, scored, text

__all__ = ["model", "text"]  # fixtures


@pytest.fixture(scope="module")
def healed(model: Path, text: Path) -> Score:
    return scored(model, text, heal=True)


@pytest.fixture(scope="module")
def windows(model: Path, text: Path) -> list[list[int]]:
    with Llama(model, vocab_only=True, verbose=False) as llm:
        tokens, _ = read_text(llm, text, n_ctx=N_CTX, n_windows=N_WINDOWS, spread=True)
        return list(perplexity.windows(tokens, N_CTX, llm.token_bos() if llm.adds_bos else None))


@pytest.fixture
def runner(model: Path, windows: list[list[int]], make: Any, tmp_path: Path) -> HealingRunner:
    llm = make(model, n_ctx=N_CTX, n_batch=N_CTX, hidden_states=True)
    return HealingRunner(llm, windows, about=identify(model), sizes=block_bytes(model), folder=tmp_path)


def test_windows_have_one_use(windows: list[list[int]]) -> None:
    for n in range(splits.LEAST, 40):
        numbers = list(range(n))
        held, chosen = splits.held_out(numbers), splits.chosen_on(numbers)
        fitted = splits.fitted_on(numbers, 100)
        assert held and chosen and fitted
        assert max(fitted) < min(chosen) <= max(chosen) < min(held) and max(held) == n - 1
        assert fitted == numbers[: len(fitted)] and len(fitted) + len(chosen) + len(held) >= n - 1
        if n >= splits.OF:  # the same shares of the text for any n
            assert 8 * (max(chosen) + 1) <= 7 * n <= 8 * min(held)
        assert set(splits.fitted_on(numbers, 5)) <= set(fitted) and len(splits.fitted_on(numbers, 5)) <= 5
    assert [*splits.chosen_on(range(64)), *splits.held_out(range(64))] == [*range(48, 64)]


def test_every_step_is_the_model_with_maps(
    healed: Score, runner: HealingRunner, windows: list[list[int]]
) -> None:
    chosen = [windows[i] for i in splits.chosen_on(windows)]
    assert healed.settings["heal"]["fit"] == "linear" and len(healed.path) == 3
    for i, step in enumerate(healed.path, 1):
        out = [s.block for s in healed.path[:i]]
        found = perplexity.perplexity(
            perplexity.surprisal(runner.straight(w, out), perplexity.window_targets(w)) for w in chosen
        )
        assert (step.perplexity, step.n_scored) == (pytest.approx(found.value, rel=1e-12), found.n_tokens)


def test_maps_bring_blocks_nearer(healed: Score, model: Path, text: Path) -> None:
    """But for those that do next to nothing, which a map can only disturb."""
    before = {block.block: block.kld for block in scored(model, text).blocks}
    seen = [(block.kld, before[block.block]) for block in healed.blocks if before[block.block] > 0.1]
    assert len(seen) >= 3 and sum(after < 0.9 * bare for after, bare in seen) >= len(seen) - 1


def test_the_map_is_that_of_the_streams(
    runner: HealingRunner, windows: list[list[int]], make: Any, model: Path
) -> None:
    """From the full model's stream to the full model's, and with it the error is less than without."""
    llm = make(model, n_ctx=N_CTX, n_batch=N_CTX, hidden_states=True)
    states = llm.hidden_states(splits.fitted_on(windows, 16)[0])
    assert np.array_equal(runner.streams[2, :N_CTX], states.inputs[2])
    assert np.array_equal(runner.streams[N_BLOCKS, :N_CTX], states.outputs[-1])
    for gap in (range(1, 2), range(2, 4), range(0, 3), range(4, N_BLOCKS)):
        part = runner.map(gap)
        assert part is not None and part.tier == TIERS[-1] and (part.gap, part.n_blocks) == (gap[0], len(gap))
        x, t = runner.streams[gap.start], runner.streams[gap.stop]
        share = np.mean(((part.apply(x) - t) ** 2).sum(axis=1) / (t**2).sum(axis=1))
        nothing = np.mean(((x - t) ** 2).sum(axis=1) / (t**2).sum(axis=1))
        assert runner.error(gap) == pytest.approx(share) and share < 0.95 * nothing


def test_shortcuts_change_nothing(
    runner: HealingRunner, windows: list[list[int]], make: Any, model: Path
) -> None:
    assert runner.shortcuts
    bare = Runner(make(model, n_ctx=N_CTX, n_batch=N_CTX, hidden_states=True), windows[0])
    full = runner.trace(windows[0], [])
    for out in ([], [3], [2, 4], [0, 3]):
        trace = runner.trace(windows[0], out)
        for block in trace.blocks:
            whole = [*out, block]
            expected = runner.straight(windows[0], whole)
            assert np.array_equal(runner.without(windows[0], out, block, trace), expected), (out, block)
            assert np.array_equal(runner.among(windows[0], whole, full), expected), (out, block)
            assert np.abs(bare.straight(windows[0], whole) - expected).max() > 1e-3


def test_a_mask_is_what_the_plan_would_be(
    runner: HealingRunner, windows: list[list[int]], model: Path, make: Any, tmp_path: Path
) -> None:
    out = [1, 2, 4]
    expected = runner.straight(windows[0], out)
    path = tmp_path / "plan.gguf"
    parts = [part for gap in (range(1, 3), range(4, 5)) if (part := runner.map(gap))]
    about = identify(model)
    known = {"architecture": about.architecture, "model_id": about.model_id, "file_id": about.file_id}
    write_bypasses(path, {"model": known, "skip_layers": "1-2,4"}, parts)
    llm = make(model, skip_layers=f"@{path}", n_ctx=N_CTX, n_batch=N_CTX)
    assert np.array_equal(perplexity.window_logits(llm, windows[0]), expected)


@pytest.mark.parametrize("n_windows", [1, 2, 3])
def test_a_stopped_run_goes_on(
    healed: Score, model: Path, text: Path, tmp_path: Path, n_windows: int
) -> None:
    output = tmp_path / "score.json"
    with pytest.raises(KeyboardInterrupt):
        scored(model, text, heal=True, output=output, on_window=Stop(n_windows))
    assert scored(model, text, heal=True, output=output).path == healed.path


def test_a_longer_path_goes_on(healed: Score, model: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "score.json"
    short = scored(model, text, heal=True, output=output, n_path=1)
    assert short.path == healed.path[:1]
    assert scored(model, text, heal=True, output=output).path[0] == healed.path[0]


def test_what_cannot_hold_maps_says_so(healed: Score, model: Path, text: Path) -> None:
    plan = plan_blocks(healed, blocks=2)
    assert plan.skip_layers and plan.found.kld is None  # which is that of the healed model
    with pytest.raises(ValueError, match="auto: cannot"):
        score_entries(healed)
    with pytest.raises(scoring.OtherSettingsError, match="heal"):
        output = text.with_suffix(".json")
        scored(model, text, output=output, n_path=1)
        scored(model, text, output=output, n_path=1, heal=True)


def test_a_text_that_is_too_short(model: Path, text: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("word " * (2 * N_CTX + 5))
    with pytest.raises(ValueError, match=r"short\.txt: 2 windows"):
        scored(model, short, heal=True)
    with pytest.raises(ValueError, match="n_tokens"):
        scored(model, text, heal=True, n_tokens=2 * N_CTX)
