"""The greedy path over blocks and halves of blocks, on a tiny model, against the long way."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_skip import Llama
from llama_skip.files.identity import Identity, block_bytes, half_bytes, identify
from llama_skip.measure import perplexity, splits
from llama_skip.measure.divergence import Scored, kl_divergence
from llama_skip.score import score as scoring
from llama_skip.score import search
from llama_skip.score.checkpoint import Checkpoint
from llama_skip.score.file import Score, read_score, write_score
from llama_skip.score.healing_runner import HealingRunner
from llama_skip.score.runner import Runner
from llama_skip.score.sizes import Sizes, chosen_by, shares
from llama_skip.skipset import Unit, block_of, unit_text
from support.matrix.arch_files import generated_one
from support.shared.halves import score_with_halves
from support.shared.scores import N_BLOCKS, N_CTX, N_WINDOWS, Stop, scored, six_blocks, text

from comparison.builds import Build

__all__ = ["text"]  # a fixture
COMMAND = [sys.executable, "-c", "from llama_skip.cli.score import main; raise SystemExit(main())"]


@pytest.fixture(scope="module")
def model(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks do much, and nearly all of it with one half."""
    path = tmp_path_factory.mktemp("halves") / "six.gguf"
    return six_blocks(path, smollm2, {"blk.1.ffn_down.weight": 50, "blk.5.ffn_down.weight": 10})


@pytest.fixture(scope="module")
def slow(model: Path, text: Path) -> Score:
    """Every candidate of every step on all tokens."""
    return scored(model, text, halves=True, shortcuts=False)


@pytest.fixture(scope="module")
def fast(model: Path, text: Path) -> Score:
    return scored(model, text, halves=True)


def windows_of(llm: Llama, text: Path) -> list[list[int]]:
    tokens = llm.tokenize(text.read_bytes())[: N_CTX * N_WINDOWS]
    return list(perplexity.windows(tokens, N_CTX, llm.token_bos() if llm.adds_bos else None))


def test_against_the_long_way(slow: Score, model: Path, text: Path, make: Any) -> None:
    """Every number and every choice again, from logits of the model loaded without the set."""
    llm = make(model, n_ctx=N_CTX, n_batch=N_CTX)
    windows = windows_of(llm, text)
    full = [perplexity.window_logits(llm, window) for window in windows]
    sizes: dict[Unit, int] = {**dict(enumerate(block_bytes(model))), **half_bytes(model)}
    known: dict[frozenset[Unit], tuple[Any, Any]] = {}

    def measured(out: list[Unit]) -> tuple[Any, Any]:
        """Return surprisal and KL divergence of each token."""
        if (key := frozenset(out)) not in known:
            llm.set_mask(",".join(map(unit_text, out)) or None)
            rows = [perplexity.window_logits(llm, window) for window in windows]
            targets = map(perplexity.window_targets, windows)
            surprisals = list(map(perplexity.surprisal, rows, targets))
            parts = [kl_divergence(row, of_full) for row, of_full in zip(rows, full, strict=True)]
            known[key] = np.concatenate(surprisals), np.concatenate(parts)
        return known[key]

    def taken(out: list[Unit]) -> int:
        gone = {unit for unit in out if isinstance(unit, int)}
        return sum(sizes[unit] for unit in out if unit in gone or block_of(unit) not in gone)

    def expected(out: list[Unit]) -> Unit:
        """Return what costs least a byte; of what cannot be told from it a block, by perplexity."""
        base = measured(out)
        begun = {block_of(unit) for unit in out}
        candidates = [u for u in sizes if u not in out and (isinstance(u, int) or block_of(u) not in begun)]
        saved = {u: taken([*out, u]) - taken(out) for u in candidates}
        costs = {u: (sum(measured([*out, u])) - sum(base)) / saved[u] for u in candidates}
        least = min(costs.values(), key=np.mean)
        worse = {u: cost - least for u, cost in costs.items()}
        equal = [u for u, w in worse.items() if w.mean() <= 2 * w.std() / np.sqrt(w.size)]

        def surprisal(unit: Unit) -> float:
            return float((measured([*out, unit])[0] - base[0]).mean()) / saved[unit]

        return min([unit for unit in equal if isinstance(unit, int)] or equal, key=surprisal)

    out: list[Unit] = []
    for step in slow.path:
        assert step.unit == expected(out)
        out.append(step.unit)
        surprisals, kld = measured(out)
        assert step.perplexity == pytest.approx(np.exp(surprisals.mean()), rel=1e-12)
        assert step.kld == pytest.approx(kld.mean(), rel=1e-12)
        assert step.bytes == taken(out)
    alone = [*slow.blocks, *slow.halves]
    assert {b.unit for b in alone} == sizes.keys()
    for b in alone:
        assert (b.weights_bytes, b.n_scored) == (sizes[b.unit], slow.text.n_scored)
        assert b.kld == pytest.approx(measured([b.unit])[1].mean(), rel=1e-12)
    assert any(step.half for step in slow.path)
    assert shares(slow)[-1] == pytest.approx(taken(out) / sum(block_bytes(model)))
    assert shares(slow)[-2] < 3 / N_BLOCKS <= shares(slow)[-1]


def test_shortcuts_change_no_number(fast: Score, slow: Score, model: Path, text: Path, make: Any) -> None:
    """They may choose otherwise among what can hardly be told apart, but what they say of it is the same."""
    llm = make(model, n_ctx=N_CTX, n_batch=N_CTX)
    windows = windows_of(llm, text)
    assert fast.path[0] == slow.path[0]
    for i, step in enumerate(fast.path, 1):
        llm.set_mask([s.unit for s in fast.path[:i]])
        found = perplexity.perplexity(perplexity.window_surprisal(llm, w) for w in windows)
        assert (step.perplexity, step.n_scored) == (pytest.approx(found.value, rel=1e-12), found.n_tokens)
    same = [
        (one, two) for one, two in zip(fast.alone, slow.alone, strict=True) if one.n_scored == two.n_scored
    ]
    assert same and all(one.kld == two.kld and one.perplexity == two.perplexity for one, two in same)
    assert sum(b.n_scored for b in fast.alone) < 0.6 * sum(b.n_scored for b in slow.alone)


@pytest.mark.parametrize("heals", [False, True])
def test_starting_at_a_half_is_exact(heals: bool, model: Path, text: Path, make: Any, tmp_path: Path) -> None:
    llm = make(model, n_ctx=N_CTX, n_batch=N_CTX, hidden_states=True)
    windows = windows_of(llm, text)
    halves = list(half_bytes(model))
    about: dict[str, Any] = {"about": identify(model), "sizes": block_bytes(model), "folder": tmp_path}
    runner = (
        HealingRunner(llm, windows, halves=halves, **about)
        if heals
        else Runner(llm, windows[0], halves=halves)
    )
    assert runner.shortcuts and runner.starts_with_halves and runner.halves == halves
    sets: list[list[Unit]] = [
        [],
        [(2, "attn")],
        [(0, "attn"), (1, "attn")],
        [(0, "ffn"), (5, "attn")],
        [1, (2, "ffn"), 3],
    ]
    for out in sets:
        candidates = [*range(N_BLOCKS), *halves]
        candidates = [u for u in candidates if u not in out and block_of(u) not in map(block_of, out)]
        candidates += [block_of(unit) for unit in out if not isinstance(unit, int)]
        trace = runner.trace(windows[0], out)
        for unit in candidates:
            found = runner.without(windows[0], out, unit, trace)
            assert np.array_equal(found, runner.straight(windows[0], [*out, unit])), (out, unit)


def test_what_units_save() -> None:
    """A block in place of its half counts once."""
    sizes = Sizes([10, 20, 30], {(0, "attn"): 3, (0, "ffn"): 6, (1, "attn"): 0, (2, "ffn"): 30})
    out: list[Unit] = []
    assert sizes.gains(out) == {0: 10, 1: 20, 2: 30, (0, "attn"): 3, (0, "ffn"): 6, (2, "ffn"): 30}
    out.append((0, "attn"))
    assert sizes.of(out) == 3
    assert sizes.gains(out) == {0: 7, 1: 20, 2: 30, (2, "ffn"): 30}
    out += [(2, "ffn"), 0]
    assert sizes.of(out) == 40
    assert sizes.gains(out) == {1: 20}  # the rest of block 2 saves nothing


SIX = Identity("six.gguf", "0" * 16, "1" * 16, "llama", 6, 64, 100, "F32", 30_000_000)


def test_what_a_path_goes_by() -> None:
    """Relative to an average block: all are alike, the attention has 4 of 16 bytes and all of the cache."""

    def found(**settings: Any) -> Sizes:
        return chosen_by(score_with_halves(SIX, [], [], **settings))

    for sizes, attn, ffn in (
        (found(per="weights"), 0.25, 0.75),
        (found(per="kv"), 1, 0),
        (found(per="time", ms_per_mib={"attn": 2.0, "ffn": 1.0}), 0.4, 0.6),
        (found(per="time", ms_per_mib={"ffn": 1.0}), 0, 1),
    ):
        assert sizes.blocks == [1.0] * 6
        assert [sizes.halves[2, "attn"], sizes.halves[2, "ffn"]] == pytest.approx([attn, ffn])
    with pytest.raises(ValueError, match="per: leaving blocks out saves no time here"):
        found(per="time", ms_per_mib={"attn": 0.0, "ffn": 0.0})
    blocks = replace(score_with_halves(SIX, [], []), halves=[], settings={})
    assert chosen_by(blocks) == Sizes([1.0] * 6)


def piece(loss: list[float], surprisal: list[float]) -> Scored:
    values = np.array(surprisal)
    return Scored(values, np.array(loss) - values, np.ones(len(loss), dtype=np.bool_))


def test_the_cost_of_what_is_saved_decides() -> None:
    """A quarter of a block at a quarter of its cost is as good; then it is perplexity for a byte."""
    half: Unit = (2, "attn")
    state = search.Sweep([0], [1, half], saves={half: 0.25}, base=[piece([1.0, 1.2], [0.5, 0.6])])
    state.samples = {1: [piece([1.4, 1.6], [0.6, 0.7])], half: [piece([1.05, 1.35], [0.52, 0.62])]}
    assert state.losses(half).mean() == pytest.approx(state.losses(1).mean())
    assert state.surprisal(half) == pytest.approx(0.55 + 4 * 0.02)
    assert state.first() == [1, half] and state.best() == half
    state.blocks_first = True
    assert state.best() == 1
    state.blocks_first = False
    state.samples[half] = [piece([1.05, 1.35], [0.53, 0.63])]
    assert state.best() == 1
    state.samples[half] = [piece([1.25, 1.46], [0.4, 0.5])]  # dearer for a byte, by more than chance
    assert state.first() == [1] and state.best() == 1


@pytest.mark.parametrize("n_windows", [1, N_WINDOWS + 2, 3 * N_WINDOWS + 1])
def test_a_stopped_run_goes_on(fast: Score, model: Path, text: Path, tmp_path: Path, n_windows: int) -> None:
    output = tmp_path / "score.json"
    with pytest.raises(KeyboardInterrupt):
        scored(model, text, halves=True, output=output, on_window=Stop(n_windows))
    assert (tmp_path / "score.json.part").exists()
    again = scored(model, text, halves=True, output=output)
    assert again == read_score(output) == fast
    assert [p.name for p in tmp_path.iterdir()] == ["score.json"]


def test_a_longer_path_goes_on(fast: Score, model: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "score.json"
    short = scored(model, text, halves=True, output=output, n_path=1)
    assert short.path == fast.path[: len(short.path)]
    assert shares(short)[-1] >= 1 / N_BLOCKS > ([0, *shares(short)])[-2]
    longer = scored(model, text, halves=True, output=output)
    assert longer.path[: len(short.path)] == short.path and shares(longer)[-1] >= 3 / N_BLOCKS


def test_a_step_comes_back_from_its_file(tmp_path: Path) -> None:
    half: Unit = (3, "ffn")
    out: list[Unit] = [2, (1, "attn"), 1]
    one = piece([1.0, 2.0], [0.5, 0.25])
    samples: dict[Unit, list[Scored]] = {half: [one], 5: []}
    state = search.Sweep(out, [half, 5], [one], samples, {(0, "attn"): "no"}, {half: 0.1})
    saved = Checkpoint(tmp_path / "x.json", {"a": 1})
    saved.save(state)
    found = saved.load(out, after=False)
    assert found is not None
    assert (found.out, found.alive) == (out, state.alive)
    assert (found.refused, found.prior) == (state.refused, state.prior)
    assert np.array_equal(found.samples[half][0].kld, one.kld) and found.samples[5] == []
    assert saved.load(out[:2], after=True) is not None
    assert saved.load(out[:2], after=False) is None
    assert Checkpoint(tmp_path / "x.json", {"a": 2}).load(out, after=False) is None


def test_by_the_kv_cache(model: Path, text: Path) -> None:
    """No feed-forward, nor the rest of a block whose attention is gone."""
    found = scored(model, text, halves=True, per="kv")
    assert {half.kv_bytes_per_token for half in found.halves if half.half == "ffn"} == {0}
    assert [half.kld is None for half in found.halves] == [half.half == "ffn" for half in found.halves]
    assert len({step.block for step in found.path}) == len(found.path) == 3
    assert all(step.half != "ffn" for step in found.path)
    assert shares(found) == pytest.approx([1 / 6, 2 / 6, 3 / 6])


def test_by_time(model: Path, text: Path, tmp_path: Path) -> None:
    """What was timed stands in the file, and is gone on with."""
    output = tmp_path / "score.json"
    with pytest.raises(KeyboardInterrupt):
        scored(model, text, halves=True, per="time", output=output, on_window=Stop(N_WINDOWS + 2))
    times = read_score(output).settings["ms_per_mib"]
    assert times.keys() == {"attn", "ffn"} and all(ms >= 0 for ms in times.values())
    found = scored(model, text, halves=True, per="time", output=output)
    assert found.complete and found.settings["ms_per_mib"] == times
    assert shares(found)[-1] >= 3 / N_BLOCKS - 1e-9


def test_with_maps_in_the_gaps(model: Path, text: Path, make: Any, tmp_path: Path) -> None:
    """Gaps are healed, halves stay as they are; each step is that model."""
    found = scored(model, text, halves=True, heal=True)
    llm = make(model, n_ctx=N_CTX, n_batch=N_CTX, hidden_states=True)
    windows = windows_of(llm, text)
    about: dict[str, Any] = {"about": identify(model), "sizes": block_bytes(model), "folder": tmp_path}
    runner = HealingRunner(llm, windows, halves=list(half_bytes(model)), **about)
    assert any(step.half for step in found.path)
    for i, step in enumerate(found.path, 1):
        out = [s.unit for s in found.path[:i]]
        measured = perplexity.perplexity(
            perplexity.surprisal(runner.straight(windows[j], out), perplexity.window_targets(windows[j]))
            for j in splits.chosen_on(windows)
        ).value
        assert step.perplexity == pytest.approx(measured, rel=1e-12)


def test_files_come_back_and_older_programs_refuse_them(fast: Score, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_score(path, fast)
    assert read_score(path) == fast
    assert json.loads(path.read_text())["version"] == 2
    blocks = replace(fast, halves=[], path=[replace(step, half="") for step in fast.path])
    write_score(path, blocks)
    content = json.loads(path.read_text())
    assert content["version"] == 1 and "halves" not in content
    assert all("half" not in entry for entry in (*content["blocks"], *content["path"]))
    assert read_score(path) == blocks


def test_a_score_of_blocks_is_not_gone_on_with_halves(model: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "score.json"
    scored(model, text, output=output, n_path=1)
    with pytest.raises(scoring.OtherSettingsError, match=r"another halves \(None, not True\)"):
        scored(model, text, output=output, n_path=1, halves=True)
    for per, halves in (("kv", False), ("disk", True)):
        with pytest.raises(ValueError, match=f"per: '{per}'"):
            scored(model, text, per=per, halves=halves)


@pytest.mark.parametrize("arch", ["gemma3", "qwen35", "mamba2", "falcon-h1"])
def test_every_architecture_one_way_or_the_other(stock: Build, make: Any, tmp_path: Path, arch: str) -> None:
    """Halves that are refused, as recurrent mixers, are said to be; the rest is exact."""
    path = generated_one(stock, arch, tmp_path)
    llm = make(path, n_ctx=N_CTX, hidden_states=True)
    window = [(7 * i) % llm.n_vocab() for i in range(N_CTX)]
    halves: list[Unit] = list(half_bytes(path))
    runner = Runner(llm, window, halves=halves)
    assert runner.starts_with_halves
    trace = runner.trace(window, [])
    for unit in halves:
        if unit in runner.halves:
            expected = runner.straight(window, [unit])
            assert np.array_equal(runner.without(window, [], unit, trace), expected)
        else:
            with pytest.raises(ValueError):
                runner.without(window, [], unit, trace)
    assert (len(runner.halves) < len(halves)) == (arch != "gemma3")


def test_the_command(model: Path, text: Path, tmp_path: Path) -> None:
    command = [*COMMAND, str(model), "-f", str(text), "-c", str(N_CTX), "-t", "1", "--blocks", "1"]
    done = subprocess.run([*command, "--halves"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = read_score(tmp_path / "six.halves.score.json")
    lines = [line.split() for line in done.stdout.splitlines()]
    for i, step in enumerate(found.path, 1):
        assert [str(i), unit_text(step.unit), f"{step.perplexity:.2f}", f"{step.kld:.4f}"] in (
            line[:4] for line in lines
        )
    shown = [line[0] for line in lines if line and line[-1] and line[0].partition(":")[0].isdecimal()]
    assert shown[:4] == ["0", "0:attn", "0:ffn", "1"]
    bad = subprocess.run([*command, "--per", "kv"], capture_output=True, text=True, cwd=tmp_path)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.endswith("error: --per: 'kv' is for a path over halves\n")
