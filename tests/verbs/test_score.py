"""What blocks cost, and the greedy path, on a tiny model, against the long way."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_skip.files import identity
from llama_skip.measure import perplexity
from llama_skip.measure.divergence import Scored, kl_divergence
from llama_skip.model.loaded import Trace
from llama_skip.score import search
from llama_skip.score.file import Score, read_score, share_of_blocks, write_score
from llama_skip.score.runner import Runner
from support.matrix.arch_files import generated_one
from support.shared.scores import N_BLOCKS, N_CTX, N_WINDOWS, Stop, model, scored, text
from support.tiny import blocks, random_model

from comparison.builds import Build

__all__ = ["model", "text"]  # fixtures

COMMAND = [sys.executable, "-c", "from llama_skip.cli.score import main; raise SystemExit(main())"]


@pytest.fixture(scope="module")
def whole(model: Path, text: Path) -> Score:
    return scored(model, text)


def test_against_the_long_way(whole: Score, model: Path, text: Path, make: Any) -> None:
    """Every number again, from logits of the model loaded without the blocks."""
    llm = make(model, n_ctx=N_CTX, n_batch=N_CTX)
    tokens = llm.tokenize(text.read_bytes())[: N_CTX * N_WINDOWS]
    bos = llm.token_bos() if llm.adds_bos else None
    windows = list(perplexity.windows(tokens, N_CTX, bos))
    full = [perplexity.window_logits(llm, window) for window in windows]

    def measured(layers: list[int]) -> tuple[Any, Any]:
        """Return surprisal and KL divergence of each token."""
        llm.set_mask(layers)
        surprisals = [perplexity.window_surprisal(llm, w) for w in windows]
        parts = [
            kl_divergence(perplexity.window_logits(llm, w), f) for w, f in zip(windows, full, strict=True)
        ]
        return np.concatenate(surprisals), np.concatenate(parts)

    def without(layers: list[int]) -> tuple[float, float]:
        surprisals, kld = measured(layers)
        return float(np.exp(surprisals.mean())), float(kld.mean())

    def expected(out: list[int]) -> int:
        """Return the candidate of lowest perplexity of those that cannot be told from the best."""
        found = {il: measured([*out, il]) for il in range(N_BLOCKS) if il not in out}
        losses = {il: sum(parts) for il, parts in found.items()}
        least = min(losses.values(), key=np.mean)
        worse = {il: loss - least for il, loss in losses.items()}
        equal = [il for il, w in worse.items() if w.mean() <= 2 * w.std() / np.sqrt(w.size)]
        return min(equal, key=lambda il: found[il][0].mean())

    assert whole.perplexity == pytest.approx(without([])[0], rel=1e-12)
    assert whole.complete and len(whole.blocks) == N_BLOCKS
    for block in whole.blocks:
        surprisals, kld = (values[: block.n_scored] for values in measured([block.block]))
        more = (
            surprisals.mean() - measured([])[0][: block.n_scored].mean()
        )  # on the part that it was measured on
        ppl = whole.perplexity * np.exp(more)
        assert (block.perplexity, block.kld) == pytest.approx((ppl, kld.mean()), rel=1e-9)
    out: list[int] = []
    for step in whole.path:
        assert step.block == expected(out)
        out.append(step.block)
        assert (step.perplexity, step.kld) == pytest.approx(without(out), rel=1e-12)
        assert step.bytes == sum(b.weights_bytes for b in whole.blocks if b.block in out)
    assert set(out) == {1, 3, 5}  # the blocks that were made to do least


def test_influence_and_angular_distance(whole: Score, model: Path, text: Path, make: Any) -> None:
    llm = make(model, n_ctx=N_CTX, n_batch=N_CTX, hidden_states=True)
    tokens = llm.tokenize(text.read_bytes())[: N_CTX * N_WINDOWS]
    bos = llm.token_bos() if llm.adds_bos else None
    cosines: dict[tuple[int, int], list[float]] = {}
    norms: list[list[float]] = [[] for _ in range(N_BLOCKS + 1)]
    for window in perplexity.windows(tokens, N_CTX, bos):
        states = llm.hidden_states(window)
        stream = [*states.inputs.astype(np.float64), states.outputs[-1].astype(np.float64)]
        for at, x in enumerate(stream):
            norms[at] += np.sqrt((x**2).sum(-1)).tolist()
            for n, y in enumerate(stream[at + 1 :], 1):
                dots = (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
                cosines.setdefault((at, n), []).extend(dots.tolist())
    for block in whole.blocks:
        assert block.influence == pytest.approx(1 - np.mean(cosines[block.block, 1]), abs=1e-9)
        assert block.norm_in == pytest.approx(np.mean(norms[block.block]))
        assert block.norm_out == pytest.approx(np.mean(norms[block.block + 1]))
    assert [len(row) for row in whole.angular] == list(range(N_BLOCKS, 0, -1))
    for (at, n), values in cosines.items():
        expected = np.arccos(np.clip(values, -1, 1)).mean() / np.pi
        assert whole.angular[at][n - 1] == pytest.approx(expected, abs=1e-7)


def test_shortcuts_change_no_number_they_share(whole: Score, model: Path, text: Path) -> None:
    slow = scored(model, text, shortcuts=False)
    assert slow.path == whole.path
    for one, two in zip(slow.blocks, whole.blocks, strict=True):
        assert one.n_scored == slow.text.n_scored
        if two.n_scored == one.n_scored:
            assert one == two


def test_starting_behind_a_block_is_exact(model: Path, text: Path, make: Any) -> None:
    llm = make(model, n_ctx=N_CTX, hidden_states=True)
    window = llm.tokenize(text.read_bytes())[:N_CTX]
    runner = Runner(llm, window)
    assert runner.shortcuts
    for out in ([], [2], [0, 5], [1, 2, 3]):
        trace = runner.trace(window, out)
        assert np.array_equal(trace.logits, runner.straight(window, out))
        for block in trace.blocks:
            expected = runner.straight(window, [*out, block])
            assert np.array_equal(runner.without(window, out, block, trace), expected)
            part = runner.trace(window, out, until=block)
            assert part.blocks == trace.blocks[: trace.blocks.index(block) + 2]
            assert np.array_equal(part.inputs, trace.inputs[: len(part.blocks)])
            assert np.array_equal(runner.without(window, out, block, part), expected)
    first = runner.reference(0, window)
    assert np.array_equal(runner.reference(0, window), first)  # from what was kept
    assert np.array_equal(first, runner.straight(window, []))


def test_a_race_measures_less(model: Path, text: Path, make: Any) -> None:
    llm = make(model, n_ctx=N_CTX, hidden_states=True)
    windows = list(perplexity.windows(llm.tokenize(text.read_bytes())[: N_CTX * N_WINDOWS], N_CTX, None))
    runner = Runner(llm, windows[0])
    state = search.Sweep([1], [0, 2, 3, 4, 5], prior={0: 9.0, 2: 1.0, 3: 1e-3, 4: 1.0, 5: 1e-3})
    search.run(state, runner, windows, n_path=3)
    assert len(state.base) == N_WINDOWS
    assert state.best() == 3
    assert 0 not in state.samples  # far too dear before
    assert len(state.samples[3]) >= len(state.samples[5]) >= 1


class Model:
    """A runner that gives what it is told to: for each block the logits without it, window by window."""

    def __init__(self, without: dict[int, list[Any]]) -> None:
        self.rows = without
        self.asked: list[int] = []
        self.window = -1

    def trace(self, window: Any, out: Any, *, until: int | None = None) -> Trace:
        self.window += 1
        return Trace([], np.empty((0, 0, 0), np.float32), self.reference(0, window))

    def straight(self, window: Any, out: Any) -> Any:
        self.asked.append(-1)
        return self.reference(0, window)

    def reference(self, index: int, window: Any) -> Any:
        return np.zeros((len(window) // 2 - 1, 4), np.float32)

    def without(self, window: Any, out: Any, block: int, trace: Trace) -> Any:
        self.asked.append(block)
        rows = self.rows[block][self.window]
        if isinstance(rows, str):
            raise ValueError(rows)
        return np.broadcast_to(np.float32(rows), (len(window) // 2 - 1, 4)).copy()


FLAT, A_LITTLE, A_LOT = [0, 0, 0, 0], [0, 0.1, 0, 0], [9, 0, 0, 0]


def raced(model: Model, prior: dict[int, float], n_windows: int = 2) -> search.Sweep:
    state = search.Sweep([0], list(prior), prior=prior)
    search.run(state, model, [[3] * 8] * n_windows, n_path=2)  # type: ignore[arg-type]
    return state


def test_who_was_harmless_in_one_window_still_has_to_race() -> None:
    model = Model({1: [[FLAT, A_LITTLE, A_LITTLE], A_LOT], 2: [A_LITTLE, A_LITTLE]})
    assert raced(model, {1: 0.010, 2: 0.011}).best() == 2


def test_who_was_far_dearer_does_not_start() -> None:
    model = Model({1: [A_LITTLE] * 2, 2: [A_LITTLE] * 2, 3: [A_LOT] * 2})
    raced(model, {1: 0.01, 2: 0.01, 3: 2.0})
    assert 3 not in model.asked


def test_who_is_next_to_a_gap_may_have_become_cheaper() -> None:
    """Block 0 is out."""
    model = Model({il: [A_LITTLE] * 2 for il in (1, 2, 3)})
    raced(model, {1: 0.016, 2: 0.010, 3: 0.016})
    assert 1 in model.asked and 3 not in model.asked


def test_what_a_candidate_was_is_not_measured_again() -> None:
    """The winner of a step is the base of the next one, on the windows where it was measured."""
    model = Model({1: [A_LITTLE] * 4, 2: [A_LITTLE, A_LOT, A_LOT, A_LOT]})
    first = raced(model, {1: 0.01, 2: 0.01}, 4)
    assert first.best() == 1 and len(first.samples[1]) == 2  # then it was alone
    assert model.asked == [1, 2, 1, 2, -1, -1]
    model.asked.clear()
    last = search.Sweep([0, 1], [], known=first.samples[1])
    search.run(last, model, [[3] * 8] * 4, n_path=2)  # type: ignore[arg-type]
    assert last.base[:2] == first.samples[1] and len(last.base) == 4
    assert model.asked == [-1, -1]


def test_the_first_step_goes_no_further_than_its_choice_takes() -> None:
    """On one window in eight all are measured, then those that may go first."""
    rows = {1: [A_LITTLE] * 16, 2: [[0, 1, 0, 0]] * 16, 3: [[0, 1.2, 0, 0]] * 16, 4: [A_LOT] * 16}
    model = Model(rows)
    state = search.Sweep([], [1, 2, 3, 4])
    search.run(state, model, [[3] * 8] * 16, n_path=3)  # type: ignore[arg-type]
    assert {unit: len(pieces) for unit, pieces in state.samples.items()} == {1: 2, 2: 2, 3: 2, 4: 1}
    assert state.best() == 1 and len(state.base) == 16


def test_refused_and_broken_candidates() -> None:
    model = Model({1: ["no"], 2: [[np.nan, 0, 0, 0]], 3: [A_LOT] * 2})
    state = raced(model, {1: 0.01, 2: 0.01, 3: 0.01})
    assert state.best() == 3
    assert state.refused[1] == "no" and "NaN in the logits" in state.refused[2]
    assert not raced(Model({1: ["no"]}), {1: 0.01}, 1).alive
    none = search.Sweep([], [1])
    search.run(none, Model({1: ["no"]}), [[3] * 8], n_path=1)  # type: ignore[arg-type]
    assert not none.alive


def test_perplexity_decides_between_equals() -> None:
    kld = {1: [0.1, 0.3], 2: [0.3, 0.1], 3: [1.0, 1.2], 4: [0.1, 0.3]}  # 3 is clearly worse
    surprisal = {1: 2.0, 2: 1.9, 3: 1.9, 4: 1.8}
    state = search.Sweep([0], [1, 2, 3])
    for block in kld:
        same = np.ones(2, dtype=np.bool_)
        state.samples[block] = [Scored(np.full(2, surprisal[block]), np.array(kld[block]), same)]
    assert state.first() == [1, 2]  # 4 has retired
    assert state.best() == 2


def test_who_may_be_the_best_stays_in_a_short_path() -> None:
    kld = {1: 0.01, 2: 0.1, 3: 1.0}  # all but 1 cost far more than the one block that is to go
    surprisal = {1: [2.0, 2.2], 2: [2.1, 1.9], 3: [2.0, 2.1]}
    same = np.ones(2, dtype=np.bool_)
    state = search.Sweep([], [1, 2, 3], [Scored(np.full(2, 2.0), np.zeros(2), same)])
    state.samples = {il: [Scored(np.array(surprisal[il]), np.full(2, kld[il]), same)] for il in kld}
    search._retire_far(state, 1)
    assert state.alive == [1, 2]


@pytest.mark.parametrize("n_windows", [1, 3, N_WINDOWS])
def test_a_stopped_run_goes_on(whole: Score, model: Path, text: Path, tmp_path: Path, n_windows: int) -> None:
    """Stopped in the second step, after so many of its windows."""

    stop = Stop(N_WINDOWS + n_windows)
    output = tmp_path / "score.json"
    with pytest.raises(KeyboardInterrupt):
        scored(model, text, output=output, on_window=stop)
    begun = read_score(output)
    assert not begun.complete
    assert begun.blocks == whole.blocks
    assert (tmp_path / "score.json.part").exists()
    stop = Stop(0)  # which counts on below it
    again = scored(model, text, output=output, on_window=stop)
    assert stop.n_left == -(3 * N_WINDOWS - n_windows)  # the rest of the second step, and the two behind it
    assert again == read_score(output)
    assert (again.path, again.blocks, again.angular) == (whole.path, whole.blocks, whole.angular)
    assert [p.name for p in tmp_path.iterdir()] == ["score.json"]


def test_a_longer_path_goes_on(whole: Score, model: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "score.json"
    short = scored(model, text, output=output, n_path=1)
    assert short.path == whole.path[:1]
    assert scored(model, text, output=output).path == whole.path


def test_a_longer_path_after_a_stop(whole: Score, model: Path, text: Path, tmp_path: Path) -> None:
    """Stopped in the last step of a shorter path, which has no candidates."""
    stop = Stop(N_WINDOWS + 2)
    output = tmp_path / "score.json"
    with pytest.raises(KeyboardInterrupt):
        scored(model, text, output=output, n_path=1, on_window=stop)
    assert scored(model, text, output=output).path == whole.path


def test_other_settings_do_not_overwrite(model: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "score.json"
    scored(model, text, output=output, n_path=1)
    before = output.read_bytes()
    with pytest.raises(ValueError, match="another n_tokens \\(384, not 64\\)"):
        scored(model, text, output=output, n_tokens=N_CTX)
    output_2 = tmp_path / "letter.txt"
    output_2.write_text("Dear reader")
    with pytest.raises(ValueError, match="not a JSON file"):
        scored(model, text, output=output_2)
    assert output.read_bytes() == before
    assert output_2.read_text() == "Dear reader"


def test_what_cannot_be_gone_on_from(model: Path, text: Path, tmp_path: Path) -> None:
    part = tmp_path / "score.json.part"
    part.write_text("Dear reader")
    with pytest.raises(ValueError, match=r"score\.json\.part: not what a stopped run leaves .*; remove it"):
        scored(model, text, output=tmp_path / "score.json", n_path=1)
    assert part.read_text() == "Dear reader"


def test_files_come_back(whole: Score, tmp_path: Path) -> None:
    write_score(tmp_path / "a.json", whole)
    assert read_score(tmp_path / "a.json") == whole
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["format"] == "llama-skip-score"
    assert content["full"]["perplexity"] == whole.perplexity
    with pytest.raises(ValueError):
        write_score(tmp_path / "a.json", replace(whole, perplexity=float("nan")))
    assert read_score(tmp_path / "a.json") == whole
    content["version"] = 3
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="version 3 of llama-skip-score, this program knows 1 and 2"):
        read_score(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_path": 0}, "n_path: 0 of"),
        ({"n_path": N_BLOCKS}, "one to stay"),
        ({"n_tokens": 10}, "n_tokens: 10 is too small"),
        ({"n_ctx": 8, "n_tokens": 64}, "n_ctx: 8 is too small, the least is 32"),
        ({"n_ctx": 4096, "n_tokens": 4096}, "do not fill a window of 4096"),
    ],
)
def test_bad_arguments(model: Path, text: Path, tmp_path: Path, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scored(model, text, output=tmp_path / "x.json", **kwargs)
    assert not list(tmp_path.iterdir())


def test_bad_files(model: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="do not fill a window"):
        scored(model, tmp_path / "empty.txt")
    with pytest.raises(FileNotFoundError):
        scored(model, tmp_path / "none.txt")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        scored(model, text, output=tmp_path / "nowhere" / "score.json")
    with pytest.raises(IsADirectoryError):
        scored(model, text, output=tmp_path)


def test_nan_in_the_weights(smollm2: Path, text: Path, tmp_path: Path) -> None:
    def change(name: str, data: np.ndarray) -> np.ndarray:
        return data * np.nan if name == "output_norm.weight" else data

    shapes = blocks(2, post_norm="ffn_norm")
    broken = random_model(tmp_path / "nan.gguf", smollm2, "qwen3", 2, shapes, {}, change)
    with pytest.raises(ValueError, match="NaN in the logits"):
        scored(broken, text, n_path=1, output=tmp_path / "score.json")
    assert not (tmp_path / "score.json").exists()


SHARES = [(0.1, 30, 3), (0.2, 30, 6), (0.3, 30, 9), (0.1, 24, 2), (0.2, 24, 4), (0.3, 24, 7), (0.01, 30, 1)]


@pytest.mark.parametrize(("fraction", "n_layer", "n"), [*SHARES, (0.58, 50, 29)])
def test_share_of_blocks(fraction: float, n_layer: int, n: int) -> None:
    assert share_of_blocks(fraction, n_layer) == n


def test_the_command(model: Path, text: Path, tmp_path: Path) -> None:
    command = [*COMMAND, str(model), "-f", str(text), "-c", str(N_CTX), "-t", "1"]
    done = subprocess.run([*command, "--blocks", "2"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = read_score(tmp_path / "six.score.json")
    assert found.model == identity.identify(model)
    for step in found.path:
        assert re.search(rf"\b{step.block} +{step.perplexity:.2f} +{step.kld:.4f} ", done.stdout)
    bad = subprocess.run([*command, "--fraction", "2"], capture_output=True, text=True, cwd=tmp_path)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("error: --fraction") and "Traceback" not in bad.stderr


def test_its_own_text_is_the_same_each_time(model: Path) -> None:
    one, two = (scored(model, None, n_tokens=2 * N_CTX, n_path=1) for _ in range(2))
    assert one == two
    assert one.text.source == "self" and "seed" in one.text.name


ARCHITECTURES = {"gemma3": True, "qwen35": True, "mamba2": True, "falcon-h1": True, "nemotron_h": False}


@pytest.mark.parametrize(("arch", "shortcuts"), ARCHITECTURES.items())
def test_every_architecture_one_way_or_the_other(
    stock: Build, make: Any, tmp_path: Path, arch: str, shortcuts: bool
) -> None:
    """The last one names the stream in a way that is not known."""
    llm = make(generated_one(stock, arch, tmp_path), n_ctx=N_CTX, hidden_states=True)
    window = [(7 * i) % llm.n_vocab() for i in range(N_CTX)]
    runner = Runner(llm, window)
    assert runner.shortcuts == shortcuts
    trace = runner.trace(window, [1])
    for block in set(range(llm.n_layer())) - {1}:
        try:
            expected = runner.straight(window, [1, block])
        except ValueError:
            with pytest.raises(ValueError):
                runner.without(window, [1], block, trace)
        else:
            assert np.array_equal(runner.without(window, [1], block, trace), expected)
