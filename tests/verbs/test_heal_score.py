"""The greedy path with a scale in each gap, against the long way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_skip import Llama
from llama_skip.measure import perplexity
from llama_skip.plan.annotate import score_entries
from llama_skip.plan.choose import plan_blocks
from llama_skip.score import score as scoring
from llama_skip.score.file import Score
from llama_skip.score.runner import Runner
from llama_skip.score.scaled_runner import N_FITTED, ScalingRunner
from support.shared.scores import N_BLOCKS, N_CTX, N_WINDOWS, Stop, model, scored, text

__all__ = ["model", "text"]  # fixtures


@pytest.fixture(scope="module")
def healed(model: Path, text: Path) -> Score:
    return scored(model, text, heal=True)


@pytest.fixture(scope="module")
def windows(model: Path, text: Path) -> list[list[int]]:
    with Llama(model, vocab_only=True, verbose=False) as llm:
        tokens = llm.tokenize(text.read_bytes())[: N_CTX * N_WINDOWS]
        return list(perplexity.windows(tokens, N_CTX, llm.token_bos() if llm.adds_bos else None))


def factor(llm: Any, windows: list[list[int]], gap: range, before: list[int], scale: str | None) -> float:
    """The least-squares factor of a gap, tokens weighed by the full model's stream behind it."""
    x, t = [], []
    for window in windows[:N_FITTED]:
        llm.set_mask(None)
        full = llm.hidden_states(window)
        t.append(full.inputs[gap.stop] if gap.stop < N_BLOCKS else full.outputs[-1])
        llm.set_mask([*before, *gap], scale)
        pruned = llm.hidden_states(window)
        at = pruned.blocks.index(gap.stop) if gap.stop in pruned.blocks else None
        x.append(pruned.outputs[-1] if at is None else pruned.inputs[at])
    xs, ts = (np.concatenate(parts).astype(np.float64) for parts in (x, t))
    root = 1 / np.sqrt((ts**2).mean(axis=1, keepdims=True))
    return float(np.linalg.lstsq((xs * root).reshape(-1, 1), (ts * root).reshape(-1), rcond=None)[0][0])


def test_every_step_is_the_scaled_model(
    healed: Score, model: Path, windows: list[list[int]], make: Any
) -> None:
    llm = make(model, n_ctx=N_CTX, n_batch=N_CTX, hidden_states=True)
    assert healed.settings["heal"] == "scale" and len(healed.path) == 3
    first = healed.path[0]
    expected = factor(llm, windows, range(first.block, first.block + 1), [], None)
    block, a = first.skip_scale.split(":")
    assert int(block) == first.block
    assert float(a) == pytest.approx(expected, rel=1e-4) and float(a) != 1
    for i, step in enumerate(healed.path, 1):
        llm.set_mask([s.block for s in healed.path[:i]], step.skip_scale)
        found = perplexity.perplexity(perplexity.window_surprisal(llm, w) for w in windows).value
        assert step.perplexity == pytest.approx(found, rel=1e-12)


def test_shortcuts_scale_alike(model: Path, windows: list[list[int]], make: Any) -> None:
    llm = make(model, n_ctx=N_CTX, n_batch=N_CTX, hidden_states=True)
    runner, bare = ScalingRunner(llm, windows[0]), Runner(llm, windows[0])
    assert runner.shortcuts
    for out in ([], [3], [2, 4], [0, 3]):
        runner.prepare(windows, [], range(N_BLOCKS))
        for i in range(1, len(out)):
            runner.prepare(windows, out[:i], range(N_BLOCKS))
        runner.prepare(windows, out, [il for il in range(N_BLOCKS) if il not in out])
        trace = runner.trace(windows[0], out)
        for block in trace.blocks:
            found = runner.without(windows[0], out, block, trace)
            expected = runner.straight(windows[0], [*out, block])
            # a factor of a factor rounds once more, which activations rounded to 8 bits make larger
            assert np.allclose(found, expected, rtol=0, atol=2e-3 * np.abs(expected).max()), (out, block)
            plain = bare.straight(windows[0], [*out, block])
            is_seen = [*out, block] != [N_BLOCKS - 1]  # the output norm takes a factor away again
            assert (np.abs(plain - expected).max() > 1e-3) == is_seen


@pytest.mark.parametrize("n_windows", [1, N_WINDOWS, N_WINDOWS + 2, 2 * N_WINDOWS])
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
    assert scored(model, text, heal=True, output=output).path[1].skip_scale != ""


def test_plans_have_the_scales(healed: Score, model: Path, text: Path) -> None:
    plan = plan_blocks(healed, blocks=2)
    assert plan.skip_scale == healed.path[1].skip_scale and "skip_scale" not in plan.found.to_json()
    with pytest.raises(ValueError, match="auto: cannot"):
        score_entries(healed)
    with pytest.raises(scoring.OtherSettingsError, match="heal"):
        output = text.with_suffix(".json")
        scored(model, text, output=output, n_path=1)
        scored(model, text, output=output, n_path=1, heal=True)
