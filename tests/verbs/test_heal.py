"""`llama-skip heal` on a tiny model: what it fits, chooses, writes and refuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_skip import Llama, bake_model, skipset
from llama_skip.bypass.bypass import TIERS
from llama_skip.bypass.regression import Sums
from llama_skip.eval.evaluate import evaluate
from llama_skip.heal import heal as healing
from llama_skip.heal import healer, trials
from llama_skip.heal.masked import Masked
from llama_skip.measure.candidates import text_windows
from llama_skip.measure.divergence import kl_divergence
from llama_skip.measure.splits import held_out
from llama_skip.measure.text import read_text
from llama_skip.plan.annotate import plan_entries
from llama_skip.plan.file import Plan, is_gguf, read_plan, write_plan
from support.shared.scores import N_BLOCKS, N_CTX, N_WINDOWS, OPTIONS, model, text

__all__ = ["model", "text"]  # fixtures
COMMAND = [sys.executable, "-c", "from llama_skip.cli.heal import main; raise SystemExit(main())"]
LAYERS = "0,2-3,5"


def healed_plan(model: Path, text: Path, **kwargs: Any) -> Plan:
    settings = {"text": text, "n_tokens": N_CTX * N_WINDOWS, "n_ctx": N_CTX, "own_writing": 0, **OPTIONS}
    return healing.heal_plan(model, **{"skip_layers": LAYERS, **settings, **kwargs})


@pytest.fixture(scope="module")
def healed(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("heal") / "healed.gguf"
    healed_plan(model, text, output=path)
    assert not Path(f"{path}.part").exists()
    return path


def windows_of(model: Path, text: Path, n: int = N_WINDOWS) -> list[list[int]]:
    with Llama(model, vocab_only=True, verbose=False) as llm:
        tokens, _ = read_text(llm, text, n_ctx=N_CTX, n_windows=n, spread=True)
        return text_windows(llm, tokens, N_CTX)


def test_every_choice_is_the_least_of_its_trials(healed: Path, model: Path, text: Path) -> None:
    plan = read_plan(healed)
    heal = plan.found.heal
    assert plan.skip_layers == LAYERS and [gap["gap"] for gap in heal.gaps] == [0, 2, 5]
    parts = {part.gap: part for part in plan.bypass}
    factors = skipset.parse_scale(plan.skip_scale)
    for gap in heal.gaps:
        tiers = {trial["tier"] for trial in gap["trials"]}
        assert tiers == set(TIERS)
        best = min(gap["trials"], key=lambda trial: trial["kld"])
        assert gap["trials"][0] == best
        if best["tier"] == "scale":
            assert factors[gap["gap"]] == best["factor"]
        elif best["tier"] != "identity":
            assert (parts[gap["gap"]].tier, parts[gap["gap"]].rank) == (best["tier"], best.get("rank", 0))
    assert plan.found.kld == heal.gaps[-1]["trials"][0]["kld"]
    # later gaps are filled meanwhile, so that each gap begins near where the one before it ended
    for before, after in zip(heal.gaps, heal.gaps[1:], strict=False):
        assert after["trials"][0]["kld"] == pytest.approx(before["trials"][0]["kld"], rel=0.3)


def test_it_diverges_less_as_loaded(healed: Path, model: Path, text: Path) -> None:
    """What was measured under masks, again with the plan loaded, on the windows held out."""
    windows = windows_of(model, text)
    held = [windows[i] for i in held_out(windows)]
    assert 0 < len(held) < len(windows)

    def divergence(layers: str) -> float:
        found = []
        with (
            Llama(model, n_ctx=N_CTX, verbose=False, **OPTIONS) as full,
            Llama(model, skip_layers=layers, n_ctx=N_CTX, verbose=False, **OPTIONS) as llm,
        ):
            for window in held:
                rows = slice(N_CTX // 2, N_CTX - 1)
                found.append(kl_divergence(llm.logits(window)[rows], full.logits(window)[rows]))
        return float(np.concatenate(found).mean())

    plan = read_plan(healed)
    assert divergence(f"@{healed}") == pytest.approx(plan.found.kld, rel=1e-9)
    assert plan.found.kld < 0.9 * divergence(LAYERS)
    identity = next(t for t in plan.found.heal.gaps[0]["trials"] if t["tier"] == "identity")
    assert identity["kld"] != pytest.approx(divergence(LAYERS), rel=1e-3)  # later gaps are filled meanwhile


def test_halves_are_healed_behind_their_blocks(
    healed: Path, model: Path, text: Path, tmp_path: Path, make: Any
) -> None:
    output, layers = tmp_path / "healed.gguf", "3,0:attn,5:attn,2:ffn"
    plan = healed_plan(model, text, skip_layers=layers, output=output)
    assert plan.skip_layers == layers
    # behind block 2 the gap of block 3 begins
    assert [(gap["gap"], gap["n_blocks"]) for gap in plan.found.heal.gaps] == [(1, 0), (3, 1), (6, 0)]
    first = {trial["tier"]: trial["kld"] for trial in plan.found.heal.gaps[0]["trials"]}
    assert plan.found.kld < 0.9 * first["identity"]
    llm = make(model, skip_layers=f"@{output}", n_ctx=N_CTX, hidden_states=True)
    assert skipset.ranges_text(llm.skip_layers) == layers
    states = llm.hidden_states(windows_of(model, text)[0])
    behind = {1: states.inputs[1]}
    parts = {part.gap: part for part in plan.bypass}
    assert parts.keys() >= behind.keys()
    for il, stream in behind.items():
        assert np.allclose(parts[il].apply(states.outputs[il - 1]), stream, rtol=1e-4, atol=1e-4)
    # a mask under which the block does not run takes its bypass away
    whole = make(model, n_ctx=N_CTX, hidden_states=True)
    whole.set_mask("0,3,5:attn,2:ffn")
    llm.set_mask("0")
    a, b = (one.hidden_states(windows_of(model, text)[0]).inputs[0] for one in (whole, llm))
    assert np.array_equal(a, b)


def test_the_streams_are_those_of_the_models(model: Path, text: Path, tmp_path: Path, make: Any) -> None:
    """The pruned stream with the bypasses before it, and the full one, from models loaded without masks."""
    llm = make(model, n_ctx=N_CTX, n_batch=N_CTX, hidden_states=True)
    windows = windows_of(model, text)
    blocks = [0, 2, 3, 5]
    bar = healing.progress(0, shown=False)
    with bar as shown:
        sets = [(blocks, skipset.gaps(blocks))]
        work = healer.Healer(llm, [windows], sets, dict.fromkeys(range(N_BLOCKS), 0), None, tmp_path, shown)
        done = healed_plan(model, text, skip_layers="0")
        done = replace(done, skip_layers=LAYERS)
        pairs = list(work.streams(done, blocks, range(2, 4)))
    assert len(pairs) == len(work.fitted_on) == len(windows) - len(work.race.windows)
    path = tmp_path / "first.gguf"
    write_plan(path, replace(done, skip_layers="0,2-3"))
    layers = f"@{path}"
    pruned = make(model, skip_layers=layers, n_ctx=N_CTX, n_batch=N_CTX, hidden_states=True)
    whole = make(model, n_ctx=N_CTX, n_batch=N_CTX, hidden_states=True)
    for window, (x, t) in zip(work.fitted_on, pairs, strict=True):
        states = pruned.hidden_states(window)
        assert np.array_equal(x, states.inputs[states.blocks.index(4)])
        assert np.array_equal(t, whole.hidden_states(window).inputs[4])


def test_sums_do_not_depend_on_the_gap_at_the_end(model: Path, text: Path, tmp_path: Path, make: Any) -> None:
    llm = make(model, n_ctx=N_CTX, n_batch=N_CTX, hidden_states=True)
    windows = windows_of(model, text)
    fresh = Plan(healing.identify(model), "5")
    with healing.progress(0, shown=False) as shown:
        work = healer.Healer(llm, [windows], [([5], [range(5, 6)])], {5: 0}, None, tmp_path, shown)
        x, t = next(work.streams(fresh, [5], range(5, 6)))
    llm.set_mask(None)
    states = llm.hidden_states(work.fitted_on[0])
    assert np.array_equal(x, states.inputs[5]) and np.array_equal(t, states.outputs[5])
    sums = Sums(x.shape[1])
    sums.add(x, t)
    assert sums.n_tokens == N_CTX


def test_trials_begin_before_their_gap(
    healed: Path, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And measure the same as from the beginning, bit for bit."""
    begin, first = trials.Race.begin, []

    def long_way(self: trials.Race, *args: Any) -> None:
        begin(self, *args)
        first.append(self.first)
        self.first = None

    monkeypatch.setattr(trials.Race, "begin", long_way)
    healed_plan(model, text, output=tmp_path / "long.gguf")
    assert first == [None, 1, 4]
    assert (tmp_path / "long.gguf").read_bytes() == healed.read_bytes()


def test_a_trial_that_clearly_loses_retires(model: Path, text: Path, tmp_path: Path, make: Any) -> None:
    llm = make(model, n_ctx=N_CTX, n_batch=N_CTX, hidden_states=True)
    windows, gap = windows_of(model, text), range(3, 4)
    with healing.progress(0, shown=False) as shown:
        race = trials.Race(Masked(llm, tmp_path), [windows], [3], shown)
        race.begin(Plan(healing.identify(model), "3"), [3], gap, [])
        best = race.add([trials.Trial(gap, "scale", factor=factor) for factor in (1.0, 50.0, 1.001)])
    assert sorted(map(len, race.pieces)) == [1, N_WINDOWS, N_WINDOWS] and len(race.pieces[1]) == 1
    found = race.found()
    assert found[0] == best and found[-1].factor == 50 and np.isinf(found[-1].perplexity)
    assert best.kld < found[1].kld < found[-1].kld


@pytest.mark.parametrize("n_gaps", [1, 2])
def test_a_stopped_run_goes_on(healed: Path, model: Path, text: Path, tmp_path: Path, n_gaps: int) -> None:
    output = tmp_path / "plan.gguf"
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        if len(lines) == n_gaps + 1:
            raise KeyboardInterrupt  # while the next gap is done and not written

    with pytest.raises(KeyboardInterrupt):
        healed_plan(model, text, output=output, log=log)
    assert not output.exists() and Path(f"{output}.part").exists()
    rest: list[str] = []
    healed_plan(model, text, output=output, log=rest.append)
    assert len(rest) == 3 - n_gaps
    assert output.read_bytes() == healed.read_bytes()


def test_windows_come_from_all_over_the_text(model: Path, text: Path) -> None:
    with Llama(model, vocab_only=True, verbose=False) as llm:
        everything = llm.tokenize(text.read_bytes())
        n_all = len(everything) // N_CTX

        def begins(n: int, **kwargs: Any) -> list[int]:
            tokens, info = read_text(llm, text, n_ctx=N_CTX, n_windows=n, **kwargs)
            assert info.n_windows == min(n or n_all, n_all) == len(tokens) // N_CTX
            whole = [everything[i * N_CTX : (i + 1) * N_CTX] for i in range(n_all)]
            return [whole.index(tokens[i : i + N_CTX]) for i in range(0, len(tokens), N_CTX)]

        assert begins(3) == [0, 1, 2]
        assert begins(3, spread=True) == [0, n_all // 3, 2 * n_all // 3]
        assert begins(0, spread=True) == begins(n_all + 5, spread=True) == [*range(n_all)]


def test_a_rank_is_kept(model: Path, text: Path) -> None:
    plan = healed_plan(model, text, skip_layers="2", rank=3)
    ranks = {trial["rank"] for trial in plan.found.heal.gaps[0]["trials"] if trial["tier"] == "linear"}
    assert ranks <= {3, 1} and 3 in ranks


def test_eval_knows_the_plan(healed: Path, model: Path, text: Path) -> None:
    found = evaluate(model, [LAYERS], plans=[healed], text=text, n_ctx=N_CTX, speed=False, **OPTIONS)
    full, plain, row = found.rows
    assert row.name == "healed" and "at" in row.bypass and row.skip_layers == LAYERS
    assert row.kld < plain.kld
    extra = sum(part.n_bytes for part in read_plan(healed).bypass) / 2**20
    weights = [sum(device.weights for device in r.memory.values()) for r in (plain, row)]
    assert weights[1] - weights[0] == pytest.approx(extra, rel=0.05)  # and padding
    assert full.bypass == ""


def test_what_cannot_hold_a_bypass_says_so(healed: Path, model: Path, tmp_path: Path) -> None:
    plan = read_plan(healed)
    assert is_gguf(healed) and plan.bypass
    with pytest.raises(ValueError, match="cannot be baked"):
        bake_model(model, tmp_path / "baked.gguf", plan=healed)
    with pytest.raises(ValueError, match="metadata cannot hold"):
        plan_entries("small", plan)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"skip_layers": "none"}, "no gap to heal"),
        ({"skip_layers": "99"}, "99"),
        ({"plan": "x"}, "either"),
        ({"rank": 0}, "rank"),
        ({"n_tokens": N_CTX}, f"n_tokens: {N_CTX} is too small"),
        ({"own_writing": 1}, "own_writing: 1 is out of range"),
        ({"own_writing": -0.5}, "own_writing: -0.5 is out of range"),
    ],
)
def test_bad_arguments(model: Path, text: Path, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        healed_plan(model, text, **kwargs)


def test_a_text_of_one_window(model: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("word " * (N_CTX + 5))
    with pytest.raises(ValueError, match="one to choose by"):
        healed_plan(model, short)


def test_own_writing_beside_a_text(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of the windows are the model's own, and of both texts one is held out."""
    seen: list[healer.Healer] = []
    heal = healer.Healer.heal

    def noted(self: healer.Healer, *args: Any) -> Any:
        seen.append(self)
        return heal(self, *args)

    monkeypatch.setattr(healer.Healer, "heal", noted)
    plan = healed_plan(model, text, skip_layers="5", own_writing=1 / 3)
    file, own = plan.found.heal.texts
    assert (file.source, file.n_windows) == ("file", N_WINDOWS - 2)
    assert (own.source, own.n_windows) == ("self", 2)
    windows = windows_of(model, text, N_WINDOWS - 2)
    assert seen[0].race.windows[0] == windows[-1] and seen[0].fitted_on[:-1] == windows[:-1]
    assert len(seen[0].race.windows) == 2 and len(seen[0].fitted_on) == N_WINDOWS - 2
    # of a text that is short there is less of it
    plan = healed_plan(model, text, skip_layers="5", n_tokens=100 * N_CTX, own_writing=0.25)
    file, own = plan.found.heal.texts
    assert (file.n_windows, own.n_windows) == (N_WINDOWS + 1, 2)


def test_command(model: Path, text: Path, tmp_path: Path) -> None:
    options = [
        "--tokens",
        str(N_CTX * N_WINDOWS),
        "-c",
        str(N_CTX),
        "-t",
        "1",
        "-fa",
        "off",
        "-b",
        str(N_CTX),
        "--own-writing",
        "0",
    ]
    command = [*COMMAND, str(model), "--skip-layers", "2-3", "-f", str(text), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = read_plan(tmp_path / "six.heal.gguf")
    assert done.stdout.startswith("six.heal.gguf: blocks 2-3 left out, ")
    assert f"gap 2-3: {plan.bypass[0].tier if plan.bypass else ''}" in done.stderr
    bad = subprocess.run([*command, "--rank", "x"], capture_output=True, text=True, cwd=tmp_path)
    assert bad.returncode == 2 and "--rank: x" in bad.stderr
    bad = subprocess.run([*command, "--own-writing", "1"], capture_output=True, text=True, cwd=tmp_path)
    assert bad.returncode == 2 and "--own-writing: 1" in bad.stderr
