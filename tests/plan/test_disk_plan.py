"""`llama-skip plan --vram --disk`: blocks on disk instead of left out, and plan files that have some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llama_skip import Llama, annotate_model, bake_model, bench_model, evaluate, heal_plan, plan_memory
from llama_skip.files.identity import identify
from llama_skip.plan.disk import plan_disk
from llama_skip.plan.file import Plan, read_plan, write_plan
from llama_skip.plan.found import Found
from llama_skip.score.file import Score
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
    six,
    used,
)

from comparison.builds import Build

__all__ = ["device", "files", "score", "six", "used"]  # fixtures


def device_mib(model: Path, endpoint: str, **more: Any) -> float:
    options = {"n_ctx": N_CTX, "n_gpu_layers": -1, "rpc_servers": endpoint, "flash_attn": None, **ONE}
    with Llama(model, verbose=False, **options, **more) as llm:
        return sum(sum(m) for name, m in llm.memory().items() if name != "CPU")


@pytest.mark.parametrize("n_out", [1, 2, 4])
def test_no_more_blocks_on_disk_than_it_takes(
    six: Path, score: Score, device: Proxy, used: Used, n_out: int
) -> None:
    """With any speed allowed nothing is left out."""
    mib = used(*ORDER[:n_out]) + 0.001
    options = {"n_ctx": N_CTX, "rpc_servers": device.endpoint, **ONE}
    left_out = plan_memory(six, score, mib, **options)
    plan = plan_disk(six, score, left_out, share=1e-9, n_timed=2, **options)
    assert (plan.skip_layers, plan.found.kld, plan.found.target) == ("", 0, left_out.found.target)
    on_disk = planning_blocks(plan.disk_layers)
    assert on_disk == list(range(len(on_disk))) and len(on_disk) >= n_out
    assert device_mib(six, device.endpoint, disk_layers=on_disk) <= mib
    assert device_mib(six, device.endpoint, disk_layers=on_disk[:-1] or None, dry_run=True) > mib
    assert plan.runtime is not None
    taken = sum(sum(m.values()) for m in plan.runtime["memory"].values())
    assert taken == device_mib(six, device.endpoint, disk_layers=on_disk, dry_run=True) <= mib
    costs = plan.found.disk
    assert costs.tokens_per_s > 0 < costs.left_out_tokens_per_s
    assert (costs.left_out_instead, costs.left_out_kld) == (left_out.skip_layers, left_out.found.kld)


def test_what_is_chosen_is_fast_enough(six: Path, score: Score, device: Proxy, used: Used) -> None:
    mib = used(*ORDER[:3]) + 0.001
    options = {"n_ctx": N_CTX, "rpc_servers": device.endpoint, **ONE}
    left_out = plan_memory(six, score, mib, **options)
    for share in (0.9, 1):
        plan = plan_disk(six, score, left_out, share=share, n_timed=2, **options)
        costs = plan.found.disk
        assert costs.tokens_per_s >= share * costs.left_out_tokens_per_s
        n_out = len(planning_blocks(plan.skip_layers))
        assert planning_blocks(plan.skip_layers) == sorted(ORDER[:n_out])
        assert (n_out == 3) == (plan.disk_layers == "")
        layers = {"skip_layers": plan.skip_layers or None, "disk_layers": plan.disk_layers or None}
        assert device_mib(six, device.endpoint, **layers) <= mib
    roomy = plan_memory(six, score, 1e6, **options)
    assert plan_disk(six, score, roomy, **options) is roomy
    on_host = plan_memory(six, score, 1e6, n_ctx=N_CTX, devices=[], **ONE)
    with pytest.raises(ValueError, match="blocks on disk free memory of devices, and none is used"):
        plan_disk(six, score, on_host, n_ctx=N_CTX, devices=[], **ONE)


def test_the_command(
    ours: Build,
    six: Path,
    files: tuple[Path, Path],
    device: Proxy,
    used: Used,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its words, and the plan file it writes, load what the plan says."""
    mib, output = used(*ORDER[:2]) + 0.001, tmp_path / "plan.json"
    args = (six, "--score", files[0], "--vram", mib, "-c", N_CTX, "--rpc", device.endpoint, "-t", 1)
    code, out, err = run(capsys, *args, "--disk", 1e-9, "-f", files[1], "-o", output)
    assert code == 0, err
    plan = read_plan(output)
    n = len(planning_blocks(plan.disk_layers))
    assert out.startswith(f"--disk-layers {plan.disk_layers} -c 256 ")
    assert f"without {plan.found.disk.left_out_instead}, nothing on disk: KL divergence 0.2000" in err
    assert f"with blocks {plan.disk_layers} on disk: KL divergence 0.0000, perplexity 10.000" in err
    device.tensors.clear()
    device.allocated.clear()
    done = ours.run("llama-completion", "-m", six, *out.split(), "-no-cnv", "-n", 2, "-p", "The", "-t", 1)
    assert done.returncode == 0, done.stderr[-2000:]
    assert device.blocks() == list(range(n, 6))
    assert 0 < sum(device.allocated) / 2**20 <= mib
    with Llama(six, skip_layers=f"@{output}", verbose=False, n_ctx=64, **ONE) as llm:
        assert (llm.skip_layers, llm.disk_layers) == ((), tuple(range(n)))

    found = {a["name"]: a for a in plan.alternatives}
    leaving, on_disk = list(found.values())[:2]
    assert list(found)[:2] == ["leave blocks out", f"blocks {plan.disk_layers} on disk"]
    assert leaving["kld"] > 0 == on_disk["kld"]
    assert max(a["mib"] for a in found.values()) <= mib
    assert on_disk["generation_speed"] > 0 and f"blocks {plan.disk_layers} on disk" in err


def test_bad_input(six: Path, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    args = (six, "--score", files[0])
    for more, code, message in (
        (("--vram", 9, "--disk", 0), 2, "--disk: 0 is out of range, expected over 0 and up to 1"),
        (("--vram", 9, "--disk", 1.5), 2, "--disk: 1.5 is out of range"),
        (("--vram", 9, "--disk", "nan"), 2, "--disk: nan is out of range"),
        (("--blocks", 1, "--disk"), 2, "--also, --parallel and --disk are for --vram"),
    ):
        found, out, err = run(capsys, *args, *more)
        assert (found, out) == (code, ""), err
        assert message in err and "Traceback" not in err


def test_plans_with_disk_blocks_elsewhere(tiny: Path, tmp_path: Path) -> None:
    """What can use them does, the rest refuses them."""
    text = tmp_path / "text.txt"
    text.write_text("One fish, two fish, red fish, blue fish. " * 40)
    about = Plan(identify(tiny), "1", disk_layers="2-3", found=Found("given"))
    path = tmp_path / "disk.json"
    write_plan(path, about)
    assert json.loads(path.read_text())["disk_layers"] == "2-3"
    assert read_plan(path) == about
    with pytest.raises(ValueError, match=r"disk\.json has blocks on disk \(2-3\), which `llama-skip bench"):
        evaluate(tiny, plans=[path], text=text, n_ctx=64, n_windows=1, **ONE)
    with pytest.raises(ValueError, match=r"a plan with blocks on disk \(2-3\) cannot be baked"):
        bake_model(tiny, tmp_path / "baked.gguf", plan=path)
    scaled = Plan(identify(tiny), "1", disk_layers="2-3", disk_scale="0.5")
    with pytest.raises(ValueError, match=r"scales blocks on disk \(0\.5\)"):
        heal_plan(tiny, plan=scaled, text=text, n_ctx=64, **ONE)
    noted = tmp_path / "noted.gguf"
    annotate_model(tiny, plans={"half": scaled}, output=noted)
    with Llama(noted, skip_layers="@half", n_ctx=64, verbose=False, **ONE) as llm:
        assert (llm.skip_layers, llm.disk_layers, llm.disk_scale) == ((1,), (2, 3), {2: 0.5, 3: 0.5})
    sizes: dict[str, Any] = {"contexts": [16], "n_rounds": 1, "text": text, "n_ctx": 64, "n_windows": 1}
    bench = bench_model(tiny, "0", plan=path, **sizes, **ONE)
    row = bench.row("plan disk")
    assert row and row.skip_layers == f"@{path}" and row.perplexity
