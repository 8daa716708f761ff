"""`plan --heal`: sets proposed by the error of maps, decided by divergence, then healed."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_skip import skipset
from llama_skip.files.identity import block_bytes, identify
from llama_skip.heal import choose, gaps
from llama_skip.heal.choose import choose_blocks, plan_healed
from llama_skip.measure import splits
from llama_skip.measure.candidates import text_windows
from llama_skip.measure.divergence import scored as measured_on
from llama_skip.measure.text import read_text
from llama_skip.model.loaded import Trace
from llama_skip.plan.choose import bypass_mib, fits, plan_blocks, plan_memory
from llama_skip.plan.file import read_plan
from llama_skip.score.file import Score, write_score
from llama_skip.score.healing_runner import HealingRunner
from support.shared.scores import N_BLOCKS, N_CTX, N_WINDOWS, OPTIONS, Stop, model, scored, text

__all__ = ["model", "text"]  # fixtures
COMMAND = [sys.executable, "-c", "from llama_skip.cli.plan import main; raise SystemExit(main())"]


@pytest.fixture(scope="module")
def score(model: Path, text: Path) -> Score:
    return scored(model, text, heal=True)


def random_costs(seed: int) -> dict[range, float]:
    rng = np.random.default_rng(seed)
    pairs = [(a, b) for a in range(7) for b in range(a + 1, 8)]
    return {range(a, b): float(rng.random()) for a, b in pairs if rng.random() < 0.8}


@pytest.mark.parametrize("seed", range(8))
def test_the_cheapest_set_of_so_many_gaps(seed: int) -> None:
    costs = random_costs(seed)
    for n_blocks, n_gaps in itertools.product(range(1, 5), range(1, 4)):
        sets = [s for s in itertools.combinations(range(7), n_blocks) if len(skipset.gaps(s)) == n_gaps]
        least = sorted(cost for s in sets if (cost := gaps.cost_of(s, costs)) < np.inf)[:3]
        found = gaps.cheapest(costs, 7, n_blocks, n_gaps, 3)
        assert len(set(found)) == len(found) and set(found) <= set(sets)
        assert [gaps.cost_of(s, costs) for s in found] == pytest.approx(least)


def test_neighbours_differ_in_one_block_at_an_edge() -> None:
    costs = {range(a, b): float(b - a) for a in range(9) for b in range(a + 1, 10)}
    near = gaps.neighbours((2, 3, 4, 7), costs)
    assert 0 < len(near) <= gaps.N_NEAR and len(set(near)) == len(near)
    for found in near:
        assert len({2, 3, 4, 7} - set(found)) == 1 and len(found) == 4 and 3 in found


def test_the_best_of_the_sets_is_found(
    score: Score, model: Path, text: Path, make: Any, tmp_path: Path
) -> None:
    """The set that is taken diverges no more than any set tried, measured the long way."""
    blocks, tried = choose_blocks(model, score, [s.block for s in score.path[:2]], text=text, **OPTIONS)
    assert tried[0]["skip_layers"] == skipset.ranges_text(blocks) and len(tried) > 3
    llm = make(model, n_ctx=N_CTX, n_batch=N_CTX, hidden_states=True)
    tokens, _ = read_text(llm, text, n_ctx=N_CTX, n_windows=N_WINDOWS, spread=True)
    windows = text_windows(llm, tokens, N_CTX)
    runner = HealingRunner(llm, windows, about=identify(model), sizes=block_bytes(model), folder=tmp_path)
    chosen = [windows[i] for i in splits.chosen_on(windows)]

    def loss(out: list[int]) -> float:
        pieces = [measured_on(runner.straight(w, out), w, runner.straight(w, [])) for w in chosen]
        return float(np.mean([piece.kld for piece in pieces]))

    losses = {s["skip_layers"]: loss(skipset.whole(skipset.parse_layers(s["skip_layers"]))) for s in tried}
    assert min(losses, key=losses.__getitem__) == tried[0]["skip_layers"]
    every = {
        skipset.ranges_text(pair): loss(list(pair)) for pair in itertools.combinations(range(N_BLOCKS), 2)
    }
    assert losses[tried[0]["skip_layers"]] <= sorted(every.values())[2]


def test_a_stopped_choice_goes_on(
    score: Score, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [s.block for s in score.path[:2]]
    seen: list[int] = []
    among = HealingRunner.among
    monkeypatch.setattr(HealingRunner, "among", lambda *args: (seen.append(1), among(*args))[1])
    expected = choose_blocks(model, score, given, text=text, **OPTIONS)
    n_all = len(seen)
    keep = tmp_path / "a.choice.part"
    best, stop = choose.Race.best, Stop(2)

    def stopped(self: choose.Race, sets: Any) -> Any:
        stop()
        return best(self, sets)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(choose.Race, "best", stopped)
        choose_blocks(model, score, given, text=text, keep=keep, **OPTIONS)
    known = json.loads(keep.read_text())["found"]
    seen.clear()
    assert choose_blocks(model, score, given, text=text, keep=keep, **OPTIONS) == expected
    assert len(seen) == n_all - sum(map(len, known.values())) < n_all


def test_the_plan_has_all_of_it(score: Score, model: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "healed.gguf"
    plan = plan_blocks(score, blocks=2)
    lines: list[str] = []
    found = plan_healed(model, score, plan, text=text, output=output, log=lines.append, **OPTIONS)
    assert read_plan(output) == found and not list(tmp_path.glob("*.part"))
    assert found.found.target == {"blocks": 2} and found.found.heal is not None
    assert found.found.heal.sets[0]["skip_layers"] == found.skip_layers
    assert "heals best" in lines[0] and found.bypass
    healed: dict[str, float] = {}
    for line in lines[1:]:  # the last gap of a set says what all of it costs
        if line.startswith("healing "):
            layers = line.split()[1]
        else:
            healed[layers] = float(re.findall(r"KL divergence (\d\.\d+)", line)[0])
    assert 1 < len(healed) <= choose.N_FINALISTS
    assert min(healed, key=healed.__getitem__) == found.skip_layers
    assert found.found.kld is not None and found.found.bytes == sum(
        block_bytes(model)[il] for il in skipset.whole(skipset.parse_layers(found.skip_layers))
    )
    # the windows that are fitted on and those that judge trials did not choose blocks, but for the fit
    with pytest.raises(ValueError, match="without heal"):
        plan_healed(model, scored(model, text), plan, text=text, output=output, **OPTIONS)
    other = tmp_path / "other.txt"
    other.write_bytes(text.read_bytes()[200:])
    with pytest.raises(ValueError, match="another text"):
        plan_healed(model, score, plan, text=other, output=output, **OPTIONS)


def test_memory_counts_the_maps(score: Score, model: Path, text: Path, tmp_path: Path) -> None:
    options = {"n_ctx": 64, "n_batch": 64}
    layers = plan_blocks(score, blocks=2).skip_layers
    maps = bypass_mib(model, layers)
    assert maps > 0
    low, high = 0.0, 1000.0
    while high - low > maps / 100:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(model, layers, middle, **options) else (middle, high)
    assert not fits(model, layers, high + 0.9 * maps, heals=True, **options)
    assert fits(model, layers, high + 1.01 * maps, heals=True, **options)
    mib = high + 1.01 * maps
    assert plan_memory(model, score, mib, **options).skip_layers == layers
    path = tmp_path / "score.json"
    write_score(path, score)
    args = [model, "--score", path, "--heal", "--vram", mib, "-f", text, "-c", 64, "-b", 64, "-t", 1]
    done = subprocess.run([*COMMAND, *map(str, args)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"--skip-layers @{model.stem}.heal.gguf -c 64 ")
    ways = re.findall(
        r"^[* ]*(leave blocks out(?:, healed)?)  +\S.*?(\d\.\d+)  \+/-", done.stderr, re.MULTILINE
    )
    kld = {name: float(value) for name, value in ways}
    assert kld["leave blocks out, healed"] < kld["leave blocks out"]
    found = read_plan(tmp_path / f"{model.stem}.heal.gguf")
    assert found.found.target == {"vram": pytest.approx(mib), "place": "on the host"}
    assert found.alternatives[0]["name"] == "leave blocks out, healed" and found.runtime is not None


def test_what_is_refused_before_any_work(score: Score, model: Path, text: Path, tmp_path: Path) -> None:
    path = tmp_path / "score.json"
    write_score(path, score)
    for args, message in (
        (["-f", text, "-o", "a b.gguf"], "a blank in it"),
        ([], "name it with -f"),
        (["-f", text, "--disk"], "without --heal|for --vram"),
    ):
        words = [model, "--score", path, "--heal", "--blocks", 2, *args]
        done = subprocess.run([*COMMAND, *map(str, words)], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode != 0 and re.search(message, done.stderr), done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["score.json"]


class Told:
    """A runner that gives what it is told to: the logits of the first of four tokens without each set."""

    def __init__(self) -> None:
        self.n_traces = 0

    def trace(self, window: list[int], out: list[int]) -> Trace:
        self.n_traces += 1
        return Trace([], np.empty((0, 0, 0), np.float32), np.zeros((3, 4), np.float32))

    def among(self, window: list[int], out: tuple[int, ...], trace: Trace) -> np.ndarray:
        if out == (9,):
            raise ValueError("refused")
        rows = np.zeros((3, 4), np.float32)
        rows[:, 0] = sum(out) + np.arange(3) / 100
        return rows


def test_finalists_are_measured_to_the_end(tmp_path: Path) -> None:
    """Those that retired early too; a set that the model refuses is in no race. A window is traced once."""
    found: dict[gaps.Blocks, list[Any]] = {}
    told = Told()
    race = choose.Race(told, [[1] * 8] * 5, found, tmp_path, lambda: None)  # type: ignore[arg-type]
    assert race.best([(4,), (1,), (3,), (9,), (2,)]) == (1,)
    assert {blocks: len(pieces) for blocks, pieces in found.items()} == {(i,): 1 for i in (1, 2, 3, 4)}
    assert race.order((1,)) == [(1,), (2,), (3,), (4,)]
    assert [len(found[i,]) for i in (1, 2, 3, 4)] == [5, 5, 1, 1]
    assert told.n_traces == 5


def test_all_of_the_text_is_healed_on(score: Score, text: Path) -> None:
    long = replace(score, text=replace(score.text, n_windows=64))
    assert choose._n_tokens(long, text, 0.25) == 85 * N_CTX  # 21 of them own writing
    assert choose._n_tokens(long, None, 0.25) == choose._n_tokens(long, text, 0) == 64 * N_CTX
    short = replace(score, text=replace(score.text, n_windows=3))
    assert choose._n_tokens(short, text, 0.25) == 3 * N_CTX


def test_the_command(score: Score, model: Path, text: Path, tmp_path: Path) -> None:
    path = tmp_path / "score.json"
    write_score(path, score)
    args = [model, "--score", path, "--heal", "--blocks", "2", "-f", text, "-b", N_CTX, "-t", "1"]
    done = subprocess.run([*COMMAND, *map(str, args)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    output = f"{model.stem}.heal.gguf"
    assert done.stdout.split() == ["--skip-layers", f"@{output}"]
    assert "sets of 2 blocks tried" in done.stderr and (tmp_path / output).exists()
    plain = subprocess.run(
        [*COMMAND, str(model), "--score", str(path), "--blocks", "2"], capture_output=True, text=True
    )
    assert plain.returncode != 0 and "without --heal" in plain.stderr
