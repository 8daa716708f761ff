"""`llama-skip plan` from paths over blocks and halves, and for the memory of the KV cache."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from llama_skip import Llama, plan_blocks, plan_kv, plan_memory
from llama_skip.files.identity import Identity, block_bytes, half_bytes, identify
from llama_skip.plan.disk import plan_disk
from llama_skip.plan.file import read_plan
from llama_skip.score.file import Score, read_score, write_score
from llama_skip.skipset import Unit, parse_layers, ranges_text
from support.rpc import Proxy
from support.shared.halves import score_with_halves
from support.shared.plans import N_CTX, ONE, device, files, run, score, six, used

__all__ = ["device", "files", "score", "six", "used"]  # fixtures

MODEL = Identity("x.gguf", "0" * 16, "1" * 16, "llama", 20, 64, 100, "F32", 30_000_000)
PATH: list[Unit] = [(3, "attn"), 5, (7, "ffn"), 3]
SHARES = [0.0125, 0.0625, 0.1, 0.1375]  # of 20 blocks, attention a quarter of each
SCORE = score_with_halves(MODEL, PATH, [0.1, 0.3, 0.25, 0.6])
SETS = ["3:attn", "5,3:attn", "5,3:attn,7:ffn", "3,5,7:ffn"]


@pytest.mark.parametrize(
    ("target", "n"),
    [
        ({"fraction": 0.01}, 1),
        ({"fraction": 0.0625}, 2),
        ({"fraction": 0.0999}, 2),
        ({"fraction": 0.1}, 3),
        ({"fraction": 0.14}, 4),
        ({"fraction": 0.149}, 4),  # rounded down to blocks, as far as the path goes
        ({"blocks": 1}, 1),
        ({"blocks": 2}, 3),
        ({"max_kld": 0.27}, 3),
        ({"max_ppl_ratio": 1.31}, 3),
        ({"max_kld": 0.09}, 0),
    ],
    ids=str,
)
def test_a_target_is_a_beginning(target: dict[str, Any], n: int) -> None:
    plan = plan_blocks(SCORE, **target)
    assert plan.skip_layers == (SETS[n - 1] if n else "")
    if n:
        assert (plan.found.kld, plan.found.bytes) == (SCORE.path[n - 1].kld, round(SHARES[n - 1] * 320))


def test_a_path_that_is_too_short() -> None:
    with pytest.raises(ValueError, match=r"leaves out 13.8%, 15.0% are asked for: .*--halves --per weights"):
        plan_blocks(SCORE, fraction=0.15)
    with pytest.raises(ValueError, match=r"leaves out 13.8%, 15.0% are asked for"):
        plan_blocks(SCORE, blocks=3)


def test_a_share_is_of_what_the_path_goes_by() -> None:
    """The attention of a block is all of its KV cache, and by time what the halves take."""
    path: list[Unit] = [(3, "attn"), (5, "attn"), 3, (7, "attn")]
    by_kv = score_with_halves(MODEL, path, [0.1, 0.2, 0.3, 0.4], per="kv")
    assert plan_blocks(by_kv, blocks=2).skip_layers == "3,5:attn"  # the rest of block 3 has no cache
    assert plan_blocks(by_kv, fraction=0.15).skip_layers == "3,5:attn,7:attn"
    times = {
        "attn": 3.0,
        "ffn": 1.0,
    }  # a MiB of attention takes three times as long, and so both halves alike
    by_time = score_with_halves(MODEL, PATH, [0.1, 0.2, 0.3, 0.4], per="time", ms_per_mib=times)
    assert plan_blocks(by_time, fraction=0.074).skip_layers == "3:attn"
    assert plan_blocks(by_time, fraction=0.075).skip_layers == "5,3:attn"
    assert plan_blocks(by_time, blocks=2).skip_layers == "5,3:attn,7:ffn"


def of_model(model: Path, path: list[Unit]) -> Score:
    """A score of a model's own sizes."""
    found = score_with_halves(identify(model), path, [0.1 * (i + 1) for i in range(len(path))])
    sizes = {**dict(enumerate(block_bytes(model))), **half_bytes(model)}
    blocks, halves = (
        [replace(b, weights_bytes=sizes[b.unit]) for b in of] for of in (found.blocks, found.halves)
    )
    return replace(found, blocks=blocks, halves=halves)


def test_the_kv_cache_that_fits(six: Path, score: Score) -> None:
    """Blocks, and halves: attention alone makes it smaller."""
    options = {"n_ctx": N_CTX, "devices": [], "type_k": 0, "type_v": 0, **ONE}
    with Llama(six, dry_run=True, verbose=False, **options) as llm:
        full = sum(used.kv for used in llm.memory().values())
    for n in range(5):
        plan = plan_kv(six, score, full * (6 - n) / 6 + 1e-6, **options)
        assert plan.skip_layers == ranges_text(step.block for step in score.path[:n])
        assert plan.runtime is not None and plan.runtime["n_ctx"] == N_CTX
        kv = sum(used["kv"] for used in plan.runtime["memory"].values())
        assert kv == pytest.approx(full * (6 - n) / 6)
    halves = of_model(six, [(4, "attn"), (2, "ffn"), (1, "attn"), 4])
    expected = {6: "", 5: "4:attn", 4: "1:attn,4:attn,2:ffn"}
    for n, layers in expected.items():
        assert plan_kv(six, halves, full * n / 6 + 1e-6, **options).skip_layers == layers
    with pytest.raises(ValueError, match="without the 4 steps of the greedy path") as error:
        plan_kv(six, halves, full / 2, **options)
    assert f"the full model takes {full:.1f} MiB, and {full * 4 / 6:.1f} MiB without" in str(error.value)
    half = plan_kv(six, halves, full / 2, **{**options, "type_k": 1, "type_v": 1})
    assert half.skip_layers == ""  # F16 instead of F32


def test_memory_with_halves(six: Path, device: Proxy) -> None:
    """Weights and cache of what stays, by the device's own account."""
    options = {"n_ctx": N_CTX, "rpc_servers": device.endpoint, **ONE}
    found = of_model(six, [(4, "attn"), (2, "ffn"), 5, (1, "attn")])

    def taken(n: int) -> float:
        device.allocated.clear()
        layers = ranges_text(step.unit for step in found.path[:n])
        more = {"n_gpu_layers": -1, "flash_attn": None, "verbose": False}
        with Llama(six, skip_layers=layers or None, **options, **more):
            return sum(device.allocated) / 2**20

    sizes = [taken(n) for n in range(5)]
    assert sizes[4] < sizes[3] < sizes[2] < sizes[0]
    for size in sizes:
        plan = plan_memory(six, found, size + 0.001, **options)
        n = next(k for k, other in enumerate(sizes) if other <= size)
        assert plan.skip_layers == ranges_text(step.unit for step in found.path[:n])
        if n == 3:
            disk = plan_disk(six, found, plan, share=1e-6, n_timed=2, **options)
            out = parse_layers(disk.skip_layers)
            assert disk.disk_layers and not {*out} & {*parse_layers(disk.disk_layers)}
    with pytest.raises(ValueError, match=r"without the 4 steps of the greedy path: .*--halves --per weights"):
        plan_memory(six, found, sizes[-1] - 0.01, **options)


def test_the_command(six: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, output = of_model(six, [(4, "attn"), (2, "ffn"), 5, (1, "attn")]), tmp_path / "plan.json"
    path = tmp_path / "score.json"
    write_score(path, found)
    code, out, err = run(capsys, path, "--halves", "--max-kld", 0.25, "-o", output)
    assert (code, shlex.split(out)) == (0, ["--skip-layers", "4:attn,2:ffn"]), err
    assert "without 4:attn,2:ffn: KL divergence 0.2000" in err
    assert read_plan(output).skip_layers == "4:attn,2:ffn"
    code, out, err = run(capsys, path, "--max-kld", 0.01)
    assert (code, out) == (0, "\n")
    assert "the first is 4:attn: KL divergence 0.1000" in err
    code, out, err = run(capsys, path, "--max-kld", 9)
    assert (
        "the score ends after 4 steps; a longer one may allow more: `llama-skip score MODEL --halves" in err
    )
    with Llama(six, dry_run=True, verbose=False, n_ctx=64, flash_attn=None, skip_layers="4:attn") as llm:
        kv = sum(used.kv for used in llm.memory().values())
    args = (six, "--score", path, "--kv", kv, "-c", 64, "-t", 1)
    code, out, err = run(capsys, *args)
    assert (code, out) == (0, "--skip-layers 4:attn -c 64 -ctk f16 -ctv f16 -ngl all\n"), err
    code, out, err = run(capsys, six, "--score", path, "--kv", 1e6, "-c", 64, "-t", 1)
    assert "six.gguf fits as it is" in err


def test_a_model_without_a_score_is_scored_with_halves(
    six: Path,
    files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    args = (six, "--blocks", 1, "--halves", "--per", "kv", "-f", files[1], "-t", 1)
    code, out, err = run(capsys, *args)
    assert code == 0, err
    found = read_score("six.halves-kv.score.json")
    assert found.settings["per"] == "kv" and found.halves
    assert out.split() == ["--skip-layers", plan_blocks(found, blocks=1).skip_layers]


def test_bad_input(
    six: Path, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_weights = tmp_path / "halves.json"
    write_score(by_weights, SCORE)
    for args, code, message in (
        ((files[0], "--blocks", 1, "--per", "kv"), 2, "--per is for --halves"),
        ((files[0], "--blocks", 1, "--halves"), 2, "--halves needs a score that was made with --halves too"),
        ((by_weights, "--blocks", 1, "--halves", "--per", "kv"), 2, "was made with --per weights"),
        ((by_weights, "--kv", 1), 2, "--vram, --kv and --speedup need MODEL"),
        ((six, "--kv", 0), 2, "--kv: 0 is out of range, expected over 0"),
        ((files[0], "--blocks", 1, "--halves", "--per", "disk"), 2, "invalid choice: 'disk'"),
        ((by_weights, "--blocks", 3), 1, "leaves out 13.8%, 15.0% are asked for"),
    ):
        found, out, err = run(capsys, *args)
        assert (found, out) == (code, ""), err
        assert message in err
