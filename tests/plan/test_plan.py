"""`llama-skip plan`: prefixes of hand-made greedy paths, and what their loads take on a device."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from llama_skip import Llama, evaluate, plan_blocks, plan_memory, plan_speed, skipset
from llama_skip.errors import ModelLoadError
from llama_skip.eval.file import EvalRow
from llama_skip.files.identity import Identity, identify
from llama_skip.measure.candidates import Candidate
from llama_skip.model.options import CACHE_TYPES
from llama_skip.plan import alternatives
from llama_skip.plan import choose as planning
from llama_skip.plan.alternatives import Alternative, recommend
from llama_skip.plan.choose import LONGER
from llama_skip.plan.file import read_plan
from llama_skip.progress import progress
from llama_skip.score.file import Score, write_score
from support.rpc import Proxy
from support.shared.plans import (
    N_CTX,
    ONE,
    ORDER,
    Used,
    device,
    files,
    planning_blocks,
    run,
    score,
    score_of,
    six,
    used,
)
from support.shared.prose import PROSE

from comparison.builds import Build
from comparison.server import free_port, server

__all__ = ["device", "files", "score", "six", "used"]  # fixtures

MODEL = Identity("x.gguf", "0" * 16, "1" * 16, "llama", 30, 64, 100, "F32", 30_000_000)


SCORE = score_of(MODEL, [13, 25, 14, 3], [0.1, 0.3, 0.25, 0.6])


@pytest.mark.parametrize(
    ("target", "layers"),
    [
        ({"blocks": 1}, "13"),
        ({"blocks": 3}, "13-14,25"),
        ({"fraction": 0.1}, "13-14,25"),
        ({"fraction": 0.01}, "13"),
        ({"fraction": 0.1333}, "13-14,25"),  # rounded down
        ({"max_kld": 0.1}, "13"),
        ({"max_kld": 0.27}, "13-14,25"),  # within the bound again after a step that is not
        ({"max_kld": 0.09}, ""),
        ({"max_kld": 9.0}, "3,13-14,25"),
        ({"max_ppl_ratio": 1.31}, "13-14,25"),
        ({"max_ppl_ratio": 1.0}, ""),
    ],
    ids=str,
)
def test_a_target_is_a_prefix(target: dict[str, Any], layers: str) -> None:
    plan = plan_blocks(SCORE, **target)
    assert plan.skip_layers == layers
    assert plan.model == MODEL
    assert plan.found.method == "greedy"
    assert plan.found.target == target
    assert plan.found.text.name == "text.txt"
    n = len(planning_blocks(layers))
    expected = (SCORE.path[n - 1].kld, SCORE.path[n - 1].perplexity) if n else (0.0, 10.0)
    assert (plan.found.kld, plan.found.perplexity) == expected


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"blocks": 5}, "the greedy path in the score has 4 blocks, 5 are asked for"),
        ({"blocks": 0}, "blocks: 0 is out of range, expected 1 or more"),
        ({"fraction": 0.2}, "has 4 blocks, 6 are asked for"),
        ({"fraction": 1.0}, "fraction: 1 is out of range, expected over 0 and below 1"),
        ({"fraction": 0.0}, "fraction: 0 is out of range"),
        ({"max_kld": -1.0}, "max_kld: -1 is out of range, expected 0 or more"),
        ({"max_kld": float("nan")}, "max_kld: nan is out of range"),
        ({"max_ppl_ratio": 0.9}, "max_ppl_ratio: 0.9 is out of range, expected 1 or more"),
        ({}, "expected one of blocks"),
        ({"blocks": 1, "fraction": 0.1}, "not 2 of them"),
    ],
    ids=str,
)
def test_targets_out_of_range(target: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_blocks(SCORE, **target)


def test_blocks_are_written_as_ranges() -> None:
    for text in ("", "3", "0-1", "3,5", "0,2-4,29", "13-14,25"):
        assert skipset.ranges_text(reversed(planning_blocks(text))) == text


@pytest.mark.parametrize("n_path", [1, 2, 9, 40])
def test_the_shortest_prefix_is_found(n_path: int) -> None:
    for answer in range(n_path + 1):
        asked: list[int] = []

        def is_enough(n: int, answer: int = answer, asked: list[int] = asked) -> bool:
            asked.append(n)
            return n >= answer

        assert planning.shortest(n_path, is_enough) == answer
        assert len(asked) <= 2 + n_path.bit_length()


def test_a_plan_for_memory_is_the_shortest_that_fits(
    six: Path, score: Score, device: Proxy, used: Used
) -> None:
    options = {"n_ctx": N_CTX, "rpc_servers": device.endpoint, **ONE}
    sizes = [used(*ORDER[:k]) for k in range(len(ORDER) + 1)]
    assert sizes == sorted(sizes, reverse=True)
    for k, size in enumerate(sizes):
        plan = plan_memory(six, score, size + 0.001, **options)
        out = planning_blocks(plan.skip_layers)
        assert sorted(ORDER[:k]) == out
        assert plan.runtime is not None
        assert sum(sum(m.values()) for m in plan.runtime["memory"].values()) == pytest.approx(size)
        assert used(*out) <= size + 0.001
        if k:
            assert used(*(block for block in out if block != ORDER[k - 1])) > size + 0.001
    with pytest.raises(ValueError, match=r"MiB without the 4 blocks of the greedy path") as error:
        plan_memory(six, score, sizes[-1] - 0.01, **options)
    # servers of other tests in this process have the numbers before it
    assert f"the full model takes {sizes[0]:.1f} MiB on RPC" in str(error.value)
    assert f"and {sizes[-1]:.1f} MiB without" in str(error.value)


def test_without_a_device_it_is_the_host_that_counts(six: Path, score: Score) -> None:
    def host(n: int) -> float:
        kwargs = {"dry_run": True, "n_ctx": N_CTX, "flash_attn": None, **OPTIONS}
        with Llama(six, skip_layers=ORDER[:n] or None, **kwargs) as llm:
            return sum(llm.memory()["CPU"])

    sizes = [host(n) for n in range(len(ORDER) + 1)]
    # compute buffers can grow when a block goes: the first that fits counts
    assert sizes != sorted(sizes, reverse=True)
    for size in sizes:
        plan = plan_memory(six, score, size, n_ctx=N_CTX, devices=[], **ONE)
        first = next(n for n, other in enumerate(sizes) if other <= size)
        assert planning_blocks(plan.skip_layers) == sorted(ORDER[:first])
        assert plan.found.target["place"] == "on the host"


OPTIONS: dict[str, Any] = {"devices": [], "n_gpu_layers": -1, "verbose": False, **ONE}


def test_the_command_for_memory(
    ours: Build,
    six: Path,
    files: tuple[Path, Path],
    device: Proxy,
    used: Used,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its words load what the plan says, and the alternatives are what they say too."""
    mib = used(2, 5) + 0.001
    quant, output = tmp_path / "q8.gguf", tmp_path / "plan.json"
    assert ours.run("llama-quantize", six, quant, "Q8_0").returncode == 0
    score_file, text = files
    code, out, err = run(
        capsys,
        *(six, "--score", score_file, "--vram", mib, "-c", N_CTX, "--rpc", device.endpoint, "-t", 1),
        *("-f", text, "--also", quant, "-o", output),
    )
    assert code == 0, err
    words = ["--skip-layers", "2,5", "-c", "256", "-ctk", "f16", "-ctv", "f16", "-ngl", "all"]
    assert out == " ".join([*words, "--rpc", device.endpoint]) + "\n"
    device.tensors.clear()
    device.allocated.clear()
    done = ours.run("llama-completion", "-m", six, *out.split(), "-no-cnv", "-n", 2, "-p", "The", "-t", 1)
    assert done.returncode == 0, done.stderr[-2000:]
    assert device.blocks() == [0, 1, 3, 4]
    assert 0 < sum(device.allocated) / 2**20 <= mib

    plan = read_plan(output)
    assert (plan.skip_layers, plan.model) == ("2,5", identify(six))
    found = {a["name"]: a for a in plan.alternatives}
    # heads of 16 allow no Q8_0 cache, and no smaller context is small enough
    assert list(found) == ["leave blocks out", "fewer blocks on the device", "q8.gguf"]
    skipping, fewer, other = found.values()
    assert all(a["mib"] <= mib for a in found.values())
    assert (fewer["kld"], skipping["n_gpu_layers"], other["n_gpu_layers"]) == (0, -1, -1)
    assert 0 < fewer["n_gpu_layers"] < 7
    with Llama(
        six,
        n_ctx=N_CTX,
        n_gpu_layers=fewer["n_gpu_layers"] + 1,
        rpc_servers=device.endpoint,
        dry_run=True,
        flash_attn=None,
        verbose=False,
        **ONE,
    ) as llm:
        assert sum(sum(m) for name, m in llm.memory().items() if name != "CPU") > mib
    rows = evaluate(
        six, ["2,5"], also=[quant], text=text, n_ctx=N_CTX, n_windows=4, speed=False, n_gpu_layers=0, **ONE
    ).rows
    assert same(rows[1], skipping)
    assert same(rows[2], other)
    best = next(a["name"] for a in found.values() if a["recommended"])
    assert plan.found.recommended == best
    assert ("not recommended" in err) == (best != "leave blocks out")


def test_a_comparison_that_fails_leaves_the_plan(
    six: Path,
    files: tuple[Path, Path],
    device: Proxy,
    used: Used,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short, output = tmp_path / "short.txt", tmp_path / "plan.json"
    short.write_text("too short")
    args = (six, "--score", files[0], "--vram", used(2, 5) + 0.001, "-c", N_CTX, "--rpc", device.endpoint)
    args = (*args, "-t", 1, "-o", output)
    expected = run(capsys, *args, "--no-alternatives")[1]
    plan = output.read_bytes()
    output.unlink()
    code, out, err = run(capsys, *args, "-f", short)
    assert (code, out) == (0, expected) and out.startswith("--skip-layers 2,5 ")
    assert "warning: what else fits could not be measured: " in err
    assert "short.txt: 2 tokens do not fill a window of 256" in err
    assert output.read_bytes() == plan


def test_other_files_are_checked_before_long_work(
    six: Path,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.gguf").write_text("no model, but a text")
    Path("cut.gguf").write_bytes(six.read_bytes()[:-4096])
    before = sorted(tmp_path.iterdir())
    for other, words in (
        (Path("none.gguf"), "No such file"),
        (Path("text.gguf"), "text.gguf"),
        (Path("cut.gguf"), "not within the file bounds"),
        (small, f"{small} has another vocabulary than {six}"),
    ):
        code, out, err = run(capsys, six, "--vram", 1, "-t", 1, "--also", six, "--also", other)
        assert (code, out) == (1, "")
        assert err.startswith("error: ") and words in err
    assert sorted(tmp_path.iterdir()) == before


def test_a_plan_for_llama_server(
    ours: Build, six: Path, files: tuple[Path, Path], device: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes less than other tools, and as much as its slots need."""
    options = {"n_ctx": N_CTX, "rpc_servers": device.endpoint, "n_gpu_layers": -1, "verbose": False, **ONE}

    def dry(**kwargs: Any) -> float:
        return planning.total(planning.dry_memory(six, flash_attn=None, **options, **kwargs))

    def served(words: list[str]) -> float:
        device.allocated.clear()
        with server(ours, six, "-fa", "auto", *words):
            return sum(device.allocated) / 2**20

    mib = dry(skip_layers=[2, 5], n_parallel=2) + 0.001
    assert mib < dry(skip_layers=[2, 5]) / 2
    code, out, err = run(
        capsys,
        *(six, "--score", files[0], "--vram", mib, "-np", 2, "-c", N_CTX, "--rpc", device.endpoint),
        *("-t", 1, "--no-alternatives"),
    )
    assert code == 0, err
    words = out.split()
    assert words[:2] == ["--skip-layers", "2,5"]
    assert words[words.index("-np") :][:2] == ["-np", "2"] and words[-1] == "-kvu"
    assert served(words) <= mib
    assert served(["--skip-layers", "5", *words[2:]]) > mib
    with pytest.raises(ValueError, match="n_parallel: only a dry run takes it"):
        Llama(six, n_parallel=2)


def test_what_cannot_be_loaded_is_an_error_and_not_what_does_not_fit(six: Path, tmp_path: Path) -> None:
    quantized = {"type_k": CACHE_TYPES["q8_0"], "type_v": CACHE_TYPES["q8_0"], "flash_attn": True}
    options = {"n_ctx": N_CTX, **OPTIONS}
    assert alternatives.most_on_devices(six, 1e6, **{**options, **quantized}) is None  # heads of 16
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(six.read_bytes()[:-4096])
    with pytest.raises(ModelLoadError, match="not within the file bounds"):
        alternatives.most_on_devices(cut, 1e6, **options)
    with pytest.raises(ModelLoadError, match="cannot connect"):
        alternatives.most_on_devices(six, 1e6, **{**options, "rpc_servers": f"127.0.0.1:{free_port()}"})


def test_nothing_on_the_device_takes_nothing_of_its_memory(six: Path, device: Proxy) -> None:
    model = identify(six)
    options = {"n_ctx": 64, "rpc_servers": device.endpoint, "n_gpu_layers": -1, "verbose": False}
    on_host = {**options, "n_gpu_layers": 0}
    with Llama(six, vocab_only=True, verbose=False) as llm:
        tokens = llm.tokenize(PROSE.encode())[:64]
    candidates = [
        Candidate("plan", str(six), model, "2,5", options=options),
        Candidate("no block", str(six), model, options=on_host),
    ]
    with progress(0, shown=False) as bar:
        plan, none = alternatives.compare(candidates, tokens, n_ctx=64, bar=bar, threads=1)
    assert plan.mib == planning.total(planning.dry_memory(six, skip_layers="2,5", **options)) > 0
    device.allocated.clear()
    with Llama(six, **on_host, **ONE):
        assert sum(device.allocated) == none.mib == 0


def same(row: EvalRow, alternative: dict[str, Any]) -> bool:
    return (row.kld, row.perplexity) == (alternative["kld"], alternative["perplexity"])


def way(name: str, kld: float, speed: float, **kwargs: Any) -> Alternative:
    return replace(
        Alternative(name, "", "", 512, "f16", "f16", -1, 1.0),
        kld=kld,
        generation_speed=speed,
        **kwargs,
    )


@pytest.mark.parametrize(
    ("others", "best"),
    [
        ([("fewer blocks", 0.0, 50.0)], "skip"),  # slow: the point was to be fast
        ([("fewer blocks", 0.0, 95.0)], "fewer blocks"),  # about as fast, and the same model
        ([("quant", 0.1, 95.0), ("worse quant", 0.4, 105.0)], "quant"),
        ([("quant", 0.3, 100.0)], "skip"),
        ([("quant", 0.2, 101.0)], "quant"),  # as close, and faster
        ([("quant", 0.3, 130.0)], "quant"),  # closer ones are slower than nine tenths of it
    ],
    ids=str,
)
def test_what_is_recommended(others: list[tuple[str, float, float]], best: str) -> None:
    ways = [way("skip", 0.2, 100.0), *(way(*other) for other in others)]
    ways.append(way("small context", 0.0, 120.0, same_context=False))
    assert [a.name for a in recommend(ways) if a.recommended] == [best]


def test_the_command_from_a_score(
    files: tuple[Path, Path], six: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score_file, _ = files
    output = tmp_path / "plan.json"
    for source in ((score_file,), (six, "--score", score_file)):
        code, out, err = run(capsys, *source, "--max-kld", 0.25, "-o", output)
        assert (code, shlex.split(out)) == (0, ["--skip-layers", "2,5"])
        assert "without 2,5: KL divergence 0.2000, perplexity 12.000 instead of 10.000" in err
        assert read_plan(output).found.target == {"max_kld": 0.25}
    code, out, err = run(capsys, score_file, "--max-kld", 0.01)
    assert (code, out) == (0, "\n")
    assert "the first is block" in err
    code, out, err = run(capsys, six, "--score", score_file, "--vram", 1e6, "-c", 64, "-t", 1)
    assert (code, out) == (0, "-c 64 -ctk f16 -ctv f16 -ngl all\n")
    assert "six.gguf fits as it is" in err


def test_a_path_that_ends_before_its_bound_is_reached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "score.json"

    def ends(of: Score, *target: object) -> str:
        write_score(path, of)
        code, _, err = run(capsys, path, *target)
        assert code == 0
        found = [line for line in err.splitlines() if line.startswith("the score ends after ")]
        assert all(line.endswith(LONGER) for line in found)
        return "".join(found).partition(";")[0]

    unfinished = replace(SCORE, complete=False)
    for target, beyond, within in (("--max-kld", 0.6, 0.3), ("--max-ppl-ratio", 1.61, 1.31)):
        assert ends(SCORE, target, beyond) == "the score ends after 4 blocks"
        assert ends(SCORE, target, within) == ""
        for bound in (beyond, within):
            assert ends(unfinished, target, bound) == "the score ends after 4 blocks, and is not complete"
        write_score(path, replace(unfinished, path=[]))
        code, out, err = run(capsys, path, target, beyond)
        assert (code, out) == (1, "")
        assert "error: the score was stopped before its first step" in err
        # one block has to stay
        assert ends(replace(SCORE, model=replace(MODEL, n_layer=5)), target, beyond) == ""
    assert ends(SCORE, "--blocks", 4) == ""


@pytest.mark.parametrize("kinds", [("f32", "f32"), ("f32", "f16"), ("bf16", "f32")], ids=str)
def test_the_type_of_the_cache_is_the_one_that_was_measured(
    six: Path, files: tuple[Path, Path], kinds: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    type_k, type_v = kinds
    args = (six, "--score", files[0], "--vram", 1e6, "-c", 64, "-t", 1, "-ctk", type_k, "-ctv", type_v)
    code, out, err = run(capsys, *args)
    assert (code, out) == (0, f"-c 64 -ctk {type_k} -ctv {type_v} -ngl all\n"), err
    numbers = dict(zip(("type_k", "type_v"), (CACHE_TYPES[kind] for kind in kinds), strict=True))
    candidate = Candidate("", "", MODEL, options={"n_ctx": 64, **numbers})
    assert alternatives.measured_as(candidate).options == numbers


def test_a_speedup(smollm2: Path, six: Path, score: Score) -> None:
    """A third of the blocks is a third of the time, far more than timings vary."""
    model = identify(smollm2)
    long = score_of(model, list(range(8, 18)), [0.1] * 10)
    plan = plan_speed(smollm2, long, 1.05, n_timed=3, **OPTIONS)
    n = len(planning_blocks(plan.skip_layers))
    assert plan.skip_layers == plan_blocks(long, blocks=n).skip_layers != ""
    assert plan.found.speedup >= 1.05
    with pytest.raises(ValueError, match=r"a speedup of 1000: leaving out all 4 blocks .* gives \d+\.\d\d:"):
        plan_speed(six, score, 1000, **OPTIONS)
    with pytest.raises(ValueError, match="speedup: 1 is out of range, expected over 1"):
        plan_speed(six, score, 1, **OPTIONS)


def test_a_model_without_a_score_is_scored_first(
    six: Path,
    files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, six, "--blocks", 1, "-f", files[1], "-t", 1)
    assert code == 0, err
    assert out.startswith("--skip-layers ")
    assert "no --score: scoring" in err
    before = Path("six.score.json").read_bytes()
    code, out_now, err = run(capsys, six, "--blocks", 1, "-f", files[1], "-t", 1, "-ctk", "f32")
    assert (code, out_now) == (1, "")
    assert "six.score.json: holds a score with another type_k (1, not 0); remove it, or plan with it" in err
    assert err.endswith("as it is: --score six.score.json\n")
    assert Path("six.score.json").read_bytes() == before
    # the second time it is there
    assert run(capsys, six, "--blocks", 1, "-f", files[1], "-t", 1)[1] == out
    assert run(capsys, "six.score.json", "--blocks", 1)[1] == out


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--blocks", 0), "1 or more"),
        (("--fraction", 0), "over 0 and below 1"),
        (("--fraction", 1), "over 0 and below 1"),
        (("--max-kld", -1), "0 or more"),
        (("--max-kld", "nan"), "0 or more"),
        (("--max-ppl-ratio", 0.9), "1 or more"),
        (("--vram", 0), "over 0"),
        (("--speedup", 1), "over 1"),
        (("--vram", 9, "--parallel", 0), "1 or more"),
    ],
    ids=str,
)
def test_targets_that_no_model_has(
    args: tuple[object, ...], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, tmp_path / "not there", *args)
    assert (code, out) == (2, "")
    assert err == f"error: {args[-2]}: {args[-1]} is out of range, expected {expected}\n"


def test_bad_input(
    six: Path, smollm2: Path, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score_file, text = files
    for args, code, message in (
        ((score_file,), 2, "one of the arguments --blocks"),
        ((score_file, "--blocks", 1, "--fraction", 0.1), 2, "not allowed with argument"),
        ((score_file, "--blocks", 1, "--also", smollm2), 2, "--also, --parallel and --disk are for --vram"),
        ((score_file, "--vram", 100), 2, "--vram, --kv and --speedup need MODEL"),
        ((score_file, "--blocks", 1, "--score", score_file), 2, "is not a GGUF file"),
        ((score_file, "--blocks", 5), 1, "has 4 blocks, 5 are asked for"),
        ((text, "--blocks", 1), 1, "not a JSON file"),
        ((tmp_path / "none", "--blocks", 1), 1, "No such file"),
        ((smollm2, "--score", score_file, "--blocks", 1), 1, "is about another model: six.gguf"),
        ((six, "--score", score_file, "--vram", 0.5, "-t", 1), 1, "MiB without the 4 blocks"),
        ((score_file, "--blocks", 1, "-o", tmp_path / "no" / "plan.json"), 1, "No such file"),
    ):
        found, out, err = run(capsys, *args)
        assert (found, out) == (code, ""), err
        assert message in err
    assert list(tmp_path.iterdir()) == []
