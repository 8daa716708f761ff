"""`llama-skip eval` against llama-perplexity on the same text, and what its file is good for."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_skip import Llama, evaluate
from llama_skip.cli import main
from llama_skip.eval.file import read_evaluation
from llama_skip.files.identity import identify
from llama_skip.measure import perplexity
from llama_skip.plan.file import Plan, write_plan
from llama_skip.plan.found import Found
from support.shared.prose import PROSE
from support.shared.tools import text, tool_perplexity

from comparison.builds import Build

__all__ = ["text"]  # fixtures
from support.tiny import blocks, random_model

ONE = {"n_threads": 1, "n_threads_batch": 1}
LINE = r"Mean PPL\(Q\)|Mean    KLD|Median  KLD|99\.0%   KLD|Same top p"


BATCHES = [{}, {"n_batch": 48, "n_ubatch": 16}]


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_every_digit_of_llama_perplexity(
    ours: Build, smollm2: Path, text: Path, batch: dict[str, int]
) -> None:
    found = evaluate(smollm2, ["13,26"], text=text, n_ctx=64, n_windows=2, speed=False, **batch, **ONE)
    sizes = ("-c", 64, "--chunks", 2, "-b", batch.get("n_batch", 64), "-ub", batch.get("n_ubatch", 64))
    for row, layers in zip(found.rows, ("none", "13,26"), strict=True):
        expected = tool_perplexity(ours, smollm2, text, *sizes, "--skip-layers", layers)
        assert (f"{row.perplexity:.4f}", f"{row.perplexity_error:.5f}") == expected
        assert row.n_scored == 2 * 31


def test_any_perplexity_of_llama_perplexity(ours: Build, tiny: Path, text: Path) -> None:
    """Of random weights it is some 1e6, so that the digits printed show more than expf() is exact to."""
    sets = ["1", "0,2-3", "2,1:attn,0:ffn"]
    found = evaluate(tiny, sets, text=text, n_ctx=97, n_windows=3, speed=False, **ONE)
    assert [row.skip_layers for row in found.rows] == ["", *sets]
    for row in found.rows:
        layers = row.skip_layers or "none"
        sizes = ("-c", 97, "--chunks", 3, "-b", 97, "-ub", 97)
        expected = tool_perplexity(ours, tiny, text, *sizes, "--skip-layers", layers)
        assert (row.perplexity, row.perplexity_error) == pytest.approx(tuple(map(float, expected)), rel=1e-9)
        assert row.n_scored == 3 * 48
    assert len({row.perplexity for row in found.rows}) == 4


def error_of_base_file(full: np.ndarray, less: np.ndarray) -> np.ndarray:
    """By how much llama-perplexity's KL divergence of each token can be off, [n]; both arrays are log p.

    Its base file keeps log p of the full model in 65,535 steps over the 16 nats below the first choice, so
    log p is off by e, |e| <= d = 8 / 65535, and what lies further down is counted as 16 nats down. With
    f(t) = exp(t) (t - log q), an entry is off by at most d max |f'| <= d exp(d) p (|log p - log q| + 1 + d).
    Entries whose log p it reads as -16 or less are not summed; no entry over -16 + d is among them, so at
    most the sum of p |log p - log q| below that is missing. Float32 adds 1e-5: three roundings of numbers
    under 64.
    """
    d = 8 / 65535
    terms = np.exp(full) * np.abs(full - less)
    rounded = d * np.exp(d) * (terms + np.exp(full) * (1 + d)).sum(axis=1)
    missing = np.where(full <= -16 + d, terms, 0).sum(axis=1)
    total: np.ndarray = rounded + missing + 1e-5
    return total


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def test_kl_divergence_of_llama_perplexity(ours: Build, smollm2: Path, text: Path, tmp_path: Path) -> None:
    n_ctx, n_windows, layers = 104, 2, "13,26"  # the tool prints statistics of 100 tokens and more
    common = ("-m", smollm2, "-t", 1, "-c", n_ctx, "-b", n_ctx, "-ub", n_ctx, "--chunks", n_windows)
    base = ("--kl-divergence-base", tmp_path / "base")
    assert ours.run("llama-perplexity", "-f", text, *common, *base).returncode == 0
    done = ours.run("llama-perplexity", *common, *base, "--kl-divergence", "--skip-layers", layers)
    printed = {
        name: [float(x) for x in re.findall(r"[\d.]+", rest)]
        for name, rest in re.findall(rf"({LINE}) *: *(.*)", done.stdout + done.stderr)
    }

    row = evaluate(smollm2, [layers], text=text, n_ctx=n_ctx, n_windows=n_windows, speed=False, **ONE).rows[1]

    full, less = [], []
    with Llama(smollm2, n_ctx=n_ctx, n_gpu_layers=-1, flash_attn=None, verbose=False, **ONE) as llm:
        tokens = llm.tokenize(PROSE.encode())[: n_ctx * n_windows]
        for window in perplexity.windows(tokens, n_ctx, llm.token_bos() if llm.adds_bos else None):
            for mask, rows in ((None, full), (layers, less)):
                llm.set_mask(mask)
                rows.append(log_softmax(llm.logits(window, first=n_ctx // 2)[:-1]))
    p, q = np.concatenate(full), np.concatenate(less)
    kld = (np.exp(p) * (p - q)).sum(axis=1)
    error = error_of_base_file(p, q)

    assert row.kld == pytest.approx(kld.mean(), abs=1e-6)
    assert row.kld_error == pytest.approx(kld.std() / np.sqrt(len(kld) - 1), rel=1e-5)
    assert error.mean() < 0.005 * kld.mean()  # it is a bound that would notice something
    half_digit = 5e-7
    assert row.kld == pytest.approx(printed["Mean    KLD"][0], abs=error.mean() + half_digit)
    # a quantile of numbers that are off by at most `error` is off by at most the largest
    for name, value in (("Median  KLD", row.kld_median), ("99.0%   KLD", row.kld_99)):
        assert value == pytest.approx(printed[name][0], abs=error.max() + half_digit)
    # the error of a mean changes by no more than the root of the mean square of what the numbers do
    spread = np.sqrt((error**2).mean() / (len(kld) - 1))
    assert row.kld_error == pytest.approx(printed["Mean    KLD"][1], abs=spread + half_digit)
    top = np.sort(p, axis=1)
    ties = (top[:, -1] - top[:, -2] <= 16 / 65535).mean()  # of these the base file may take the other
    assert 100 * row.top1 == pytest.approx(printed["Same top p"][0], abs=100 * ties + 5e-4)
    assert row.perplexity == pytest.approx(printed["Mean PPL(Q)"][0], rel=1e-6)


def test_rows_are_what_they_say(tiny: Path, text: Path, tmp_path: Path) -> None:
    plan = tmp_path / "mine.json"
    write_plan(plan, Plan(identify(tiny), "1-2", "1:0.5", found=Found("given")))
    kwargs: dict[str, Any] = {"text": text, "n_ctx": 64, "n_windows": 2, "use_mmap": False, **ONE}
    found = evaluate(tiny, [[3], "none", "3"], plans=[plan, plan], also=[tiny], **kwargs)
    full, three, planned = found.rows
    assert (full.name, three.name, planned.name) == ("none", "3", "mine")
    scaled = evaluate(tiny, ["1-2"], skip_scale="1:0.5", plans=[plan], speed=False, **kwargs).rows[1]
    assert scaled.name == "1-2 x 1:0.5 = mine"
    assert (full.kld, full.kld_99, full.top1) == (0, 0, 1)
    assert (planned.skip_layers, planned.skip_scale) == ("1-2", "1:0.5")
    halves = tmp_path / "halves.json"
    write_plan(halves, Plan(identify(tiny), "2,1:attn", found=Found("given")))
    both = evaluate(tiny, [[(1, "attn"), 2], {"ffn": [0]}], plans=[halves], speed=False, **kwargs).rows
    assert [row.name for row in both[1:]] == ["1:attn,2 = halves", "0:ffn"]
    assert [row.skip_layers for row in both[1:]] == ["2,1:attn", "0:ffn"]
    for row in found.rows:
        assert row.prompt_speed and row.generation_speed and row.prompt_speed > 0 < row.generation_speed
        scale = row.skip_scale or None
        with Llama(
            tiny,
            skip_layers=row.skip_layers or None,
            skip_scale=scale,
            n_ctx=64,
            flash_attn=None,
            verbose=False,
            use_mmap=False,
            **ONE,
        ) as llm:
            assert row.memory == llm.memory()
            tokens = llm.tokenize(PROSE.encode())[:128]
            bos = llm.token_bos() if llm.adds_bos else None
            assert perplexity.measure(llm, tokens, n_ctx=64, bos=bos)[:2] == (
                row.perplexity,
                row.perplexity_error,
            )
    assert planned.mib("CPU") < three.mib("CPU") < full.mib("CPU")


def test_another_file(tiny: Path, smollm2: Path, text: Path, tmp_path: Path, ours: Build) -> None:
    quant = tmp_path / "q8.gguf"
    assert ours.run("llama-quantize", tiny, quant, "Q8_0").returncode == 0
    found = evaluate(tiny, also=[quant], text=text, n_ctx=64, n_windows=1, speed=False, **ONE)
    assert [row.name for row in found.rows] == ["none", "q8.gguf"]
    row = found.rows[1]
    assert row.file_id != found.rows[0].file_id
    rows = []
    for path in (tiny, quant):
        with Llama(path, n_ctx=64, flash_attn=None, verbose=False, **ONE) as llm:
            tokens = llm.tokenize(PROSE.encode())[:64]
            (window,) = perplexity.windows(tokens, 64, llm.token_bos() if llm.adds_bos else None)
            rows.append(log_softmax(llm.logits(window, first=32)[:-1]))
    assert row.kld == pytest.approx((np.exp(rows[0]) * (rows[0] - rows[1])).sum(axis=1).mean(), rel=1e-6)
    assert row.memory["CPU"].weights < 0.3 * found.rows[0].memory["CPU"].weights


def test_what_is_finished_is_kept(tiny: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "eval.json"
    kwargs: dict[str, Any] = {"text": text, "n_ctx": 64, "n_windows": 2, "output": output, **ONE}
    first = evaluate(tiny, ["1"], **kwargs)
    assert asdict(read_evaluation(output)) == asdict(first)
    again = evaluate(tiny, ["2", "1"], **kwargs)
    # a speed that was measured anew would differ
    assert [again.rows[0], again.rows[2]] == first.rows
    assert [row.name for row in again.rows] == ["none", "2", "1"]
    assert [row.name for row in evaluate(tiny, ["3"], **kwargs).rows] == ["none", "3", "2", "1"]
    for change, what in (
        ({"n_ctx": 32}, "text with n_tokens 128, not 64"),
        ({"n_windows": 1}, "text with n_tokens 128, not 64"),
        ({"n_ubatch": 16}, "settings with n_ubatch 512, not 16"),
    ):
        with pytest.raises(ValueError, match=f"are for the {what}: name another file, or remove it"):
            evaluate(tiny, ["1"], **{**kwargs, **change})
    other = tmp_path / "other.json"
    other.write_text('{"format": "something"}')
    with pytest.raises(ValueError, match="expected a file of format llama-skip-eval"):
        evaluate(tiny, ["1"], **{**kwargs, "output": other})
    assert other.read_text() == '{"format": "something"}'


def test_an_interrupt_loses_nothing(tiny: Path, text: Path, tmp_path: Path) -> None:
    """The run that goes on has the numbers of one that was never interrupted."""
    output = tmp_path / "eval.json"
    kwargs: dict[str, Any] = {"text": text, "n_ctx": 64, "n_windows": 4, "speed": False, **ONE}
    program = """
import sys, os, signal
from llama_skip.cli import eval as verb
from llama_skip.measure import candidates as quality
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background inherits "ignore"
measured = quality.score_window
def score_window(*args):
    score_window.n += 1
    if score_window.n == 6:
        os.kill(os.getpid(), signal.SIGINT)
    return measured(*args)
score_window.n = 0
quality.score_window = score_window
sys.exit(verb.main(sys.argv[1:]))
"""
    args = ["--skip-layers", "1", "--skip-layers", "2", "-f", text, "-c", 64, "--windows", 4]
    args += ["--no-speed", "-t", 1, "-o", output]
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny), *map(str, args)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert "error" not in done.stderr and "Traceback" not in done.stderr
    left = json.loads(output.read_text())
    assert not left["complete"]
    assert left["rows"] == []
    assert sorted(len(pieces) for pieces in left["pending"].values()) == [1, 2, 2]
    found = evaluate(tiny, ["1", "2"], output=output, **kwargs)
    expected = evaluate(tiny, ["1", "2"], **kwargs)
    assert found.complete
    assert [asdict(row) for row in found.rows] == [asdict(row) for row in expected.rows]
    assert "pending" not in json.loads(output.read_text())
    assert list(tmp_path.iterdir()) == [output]


def test_a_full_disk_leaves_what_was_there(tiny: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "eval.json"
    kwargs: dict[str, Any] = {"text": text, "n_ctx": 64, "n_windows": 1, "speed": False, **ONE}
    evaluate(tiny, ["1"], output=output, **kwargs)
    before = output.read_bytes()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), len(before)))

    args = [tiny, "--skip-layers", "2", "-f", text, "-c", 64, "--windows", 1, "--no-speed", "-t", 1]
    args += ["-o", output]
    command = "import sys; from llama_skip.cli import main; sys.exit(main(['eval', *sys.argv[1:]]))"

    done = subprocess.run(
        [sys.executable, "-c", command, *map(str, args)], capture_output=True, text=True, preexec_fn=limit
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == f"error: {output}: File too large"
    assert "Traceback" not in done.stderr
    assert output.read_bytes() == before and list(tmp_path.iterdir()) == [output]
    found = evaluate(tiny, ["2"], output=output, **kwargs)
    assert [row.name for row in found.rows] == ["none", "2", "1"]


def test_its_own_writing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluate(tiny, ["1"], n_ctx=160, speed=False, **ONE)
    assert found.text.source == "self"
    assert "itself writes" in found.text.name
    assert found.text.n_tokens == found.text.n_windows * 160
    assert found == evaluate(tiny, ["1"], n_ctx=160, speed=False, **ONE)


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    try:
        code = main(["eval", *map(str, args), "-t", "1"])
    except SystemExit as err:
        code = int(err.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command(tiny: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = (tiny, "--skip-layers", "1", "-f", text, "-c", 64, "--windows", 2)
    code, out, _ = run(capsys, *args)
    assert code == 0
    head, full, one = out.splitlines()[:3]
    assert "left out" in head and "CPU MiB" in head
    assert full.split()[0] == "none" and one.split()[0] == "1"
    code, out, _ = run(capsys, *args, "--json", "--no-speed")
    found = json.loads(out)
    assert (found["format"], found["version"]) == ("llama-skip-eval", 1)
    assert f"{found['rows'][1]['perplexity']:.4f}" == one.split()[1]
    assert found["rows"][1]["memory"]["CPU"]["kv"] > 0


def test_bad_input(
    tiny: Path, smollm2: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, empty, output = tmp_path / "plan.json", tmp_path / "empty.txt", tmp_path / "no" / "eval.json"
    write_plan(plan, Plan(identify(smollm2), "13"))
    empty.write_text("")
    for args, code, message in (
        (("--skip-layers", "4"), 2, "--skip-layers: block 4 is out of range, the model has blocks 0-3"),
        (("--plan", plan), 1, "plan.json is about another model: SmolLM2"),
        (("-f", empty), 1, "tokens do not fill a window of 64: give a longer text or a smaller context"),
        (("-f", text, "-c", 4096), 1, "tokens do not fill a window of 4096"),
        (("-f", tmp_path / "none.txt"), 1, "none.txt: No such file"),
        (("-f", text, "-c", 8), 2, "--ctx-size: 8 is too small, the least is 32"),
        (("-f", text, "--windows", -1), 2, "--windows: -1 is too small, the least is 0"),
        (("-f", text, "-o", output), 1, "eval.json: No such file"),
        (("-f", text, "--also", tmp_path / "no.gguf"), 1, "no.gguf: No such file"),
    ):
        found, out, err = run(capsys, tiny, "-c", 64, *args)
        assert (found, out) == (code, ""), err
        assert message in err
        assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "plan.json"]


def test_nan(smollm2: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(name: str, data: np.ndarray) -> np.ndarray:
        return data * np.nan if name == "output_norm.weight" else data

    model = random_model(
        tmp_path / "nan.gguf", smollm2, "qwen3", 2, blocks(2, post_norm="ffn_norm"), {}, change
    )
    code, out, err = run(capsys, model, "-f", text, "-c", 64, "--windows", 1, "-o", tmp_path / "eval.json")
    assert (code, out) == (1, "")
    assert "error: NaN in the logits of 31 of 31 tokens" in err
    assert list(tmp_path.iterdir()) == [model]
