"""The flags of disk blocks in the tools, and disk blocks in llama-server."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from support.disk_pages import cached_pages, disk_pages
from support.rpc import rpc_device

from comparison.builds import Build
from comparison.oracle import TEXT, expand, of_blocks
from comparison.server import server

LONG = "1;3;5;" * 40 + "7-29+2"  # longer than one override holds
DISK = "1-29+2"


WAYS: list[tuple[list[str], dict[str, str]]] = [
    (["--disk-layers", DISK, "--disk-scale", "0.5"], {}),
    (["--disk-layers", LONG, "--disk-scale", "0.5"], {}),
    (
        [
            "--disk-layers",
            "3",
            "--disk-layers",
            DISK,
            "--disk-scale",
            ",".join(f"{il}:0.5" for il in range(1, 30, 2)),
        ],
        {},
    ),
    ([], {"LLAMA_ARG_DISK_LAYERS": DISK, "LLAMA_ARG_DISK_SCALE": "0.5"}),
    (["--disk-layers", DISK, "--disk-strict", "--disk-idle", "60"], {"LLAMA_ARG_DISK_SCALE": "0.5"}),
    (["--override-kv", f"skip.disk=str:{DISK},skip.disk_scale=float:0.5"], {}),
    (["--override-kv", "skip.disk=str:1,skip.disk.1=str:-29+2", "--disk-scale", "0.5"], {}),
]


def test_every_way_to_give_disk_blocks(ours: Build, smollm2: Path) -> None:
    whole = ours.complete(smollm2, "--no-repack").stdout
    found = [ours.complete(smollm2, *args, "--no-repack", env=env) for args, env in WAYS]
    assert len({done.stdout for done in found}) == 1
    assert found[0].stdout != whole
    for done in found:
        assert re.search(r"disk: blocks 1,3,5,.*29 stay in the file, scale 1:0\.5,", done.stderr)
    assert ours.complete(smollm2, "--no-repack", "--disk-layers", DISK).stdout == whole


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--disk-layers", "30"], ["--disk-layers: block 30 is out of range", "0-29"]),
        (["--disk-layers", "3-1"], ["--disk-layers: reversed range"]),
        (["--disk-layers", ""], ["--disk-layers: the value is empty"]),
        (["--disk-layers", "auto:25%"], ["--disk-layers: 'auto:25%'"]),
        (["--disk-layers", "3", "--disk-scale", "inf"], ["--disk-scale: the scale 'inf' is not finite"]),
        (["--disk-layers", "3", "--disk-scale", "4:1"], ["--disk-scale: block 4 is not on disk"]),
        (["--disk-scale", "0.5"], ["--disk-scale: no block is on disk"]),
        (["--disk-idle", "5"], ["--disk-layers: no block is on disk"]),
        (["--disk-strict"], ["--disk-layers: no block is on disk"]),
        (["--disk-layers", "3", "--disk-idle", "soon"], ["--disk-idle"]),
        (["--disk-layers", "3-5", "--skip-layers", "5"], ["--disk-layers: blocks 5 are left out"]),
        (
            ["--disk-layers", "3", "--override-kv", "skip.disk=int:4"],
            ["--disk-layers: also given as --override-kv"],
        ),
    ],
)
@pytest.mark.parametrize("tool", ["llama-completion", "llama-server", "llama-perplexity"])
def test_refused(ours: Build, smollm2: Path, tool: str, args: list[str], words: list[str]) -> None:
    done = ours.run(tool, "-m", smollm2, *args)
    assert done.returncode == 1
    assert all(word in done.stderr for word in words), done.stderr[-2000:]
    assert done.stderr.count(words[0]) == 1
    assert "loading model tensors" not in done.stderr


def test_llama_bench(ours: Build, smollm2: Path) -> None:
    args = ("-m", smollm2, "-p", 4, "-n", 2, "-r", 1, "-t", 1, "-o", "json")
    done = ours.run("llama-bench", *args, "--disk-layers", "3-5", "--disk-scale", "4:0.5")
    assert done.returncode == 0, done.stderr[-2000:]
    assert {(row["disk_layers"], row["disk_scale"]) for row in json.loads(done.stdout)} == {("3-5", "4:0.5")}
    assert "disk: blocks 3-5 stay in the file, scale 4:0.5" in done.stderr
    done = ours.run("llama-bench", *args, "--disk-layers", "31")
    assert done.returncode == 1 and "--disk-layers: block 31 is out of range" in done.stderr


def test_a_draft_model_does_not_inherit_them(ours: Build, smollm2: Path) -> None:
    with server(
        ours, smollm2, "-md", smollm2, "--spec-type", "draft-simple", "--disk-layers", "3-5"
    ) as found:
        found.complete("The old man", 4)
        assert found.log.count("stay in the file") == 1


def perplexity(build: Build, *args: object) -> str:
    done = build.run("llama-perplexity", *args)
    assert done.returncode == 0, done.stderr[-3000:]
    match = re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout + done.stderr)
    assert match
    return match[1]


def test_perplexity_beside_a_device_is_that_of_the_whole_model(
    ours: Build, smollm2: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 8)
    args = ("-m", smollm2, "-f", text, "-c", 128, "-b", 128, "-t", 1, "--no-repack")
    with rpc_device(ours.tool("ggml-rpc-server")) as device:
        found = perplexity(
            ours, *args, "--disk-layers", DISK, "--rpc", device.endpoint, "-ngl", 99, "-fit", "off"
        )
        assert device.blocks() == list(range(0, 30, 2))
    assert found == perplexity(ours, *args)


def test_fit_leaves_disk_blocks_on_the_host(ours: Build, smollm2: Path) -> None:
    """So little is free on the device that some of the other blocks do not fit either."""
    with rpc_device(ours.tool("ggml-rpc-server")) as device:
        device.free_memory = (100 + 1024) << 20
        ours.complete(
            smollm2, "-c", 256, "--rpc", device.endpoint, "--fit-target", 1024, "--disk-layers", DISK
        )
        some = device.blocks()
    assert some and set(some) < set(range(0, 30, 2))
    assert some == list(range(0, 30, 2))[-len(some) :]


@pytest.fixture
def copy(smollm2: Path, tmp_path: Path) -> Path:
    """A file that no other process maps."""
    path = tmp_path / "copy.gguf"
    shutil.copyfile(smollm2, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())  # a page that is still to be written stays in the page cache
    return path


def test_a_server_hands_its_memory_back_when_idle(ours: Build, copy: Path) -> None:
    mapped = sum(t.size for t in of_blocks(copy, expand(DISK))) / 2**20
    on_disk = disk_pages(copy, expand(DISK))

    def resident() -> float:
        props = found.ask("/props")["skip"]
        assert props["disk_layers"] == "1,3,5,7,9,11,13,15,17,19,21,23,25,27,29" and props["disk_scale"] == ""
        assert props["disk_mib_mapped"] == pytest.approx(mapped, rel=0.001)
        return float(props["disk_mib_resident"])

    with server(ours, copy, "--disk-layers", DISK, "--disk-idle", 3) as found:
        first = found.complete("The old man", 8)["content"]
        assert resident() == pytest.approx(mapped, rel=0.01)
        deadline = time.monotonic() + 60
        while (resident() > 0 or cached_pages(copy) & on_disk) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert resident() == 0
        assert not cached_pages(copy) & on_disk
        assert found.complete("The old man", 8)["content"] == first
        assert resident() == pytest.approx(mapped, rel=0.01)


def test_a_server_that_sleeps_and_wakes(ours: Build, copy: Path) -> None:
    mapped = sum(t.size for t in of_blocks(copy, expand(DISK))) / 2**20

    def memory() -> tuple[float, float]:
        props = found.ask("/props")["skip"]
        return props["disk_mib_mapped"], props["disk_mib_resident"]

    with server(ours, copy, "--disk-layers", DISK, "--sleep-idle-seconds", 2) as found:
        for _ in range(2):
            assert "content" in found.complete("The old man", 8)
            assert memory() == pytest.approx((mapped, mapped), rel=0.01)
            deadline = time.monotonic() + 60
            while not found.ask("/props")["is_sleeping"] and time.monotonic() < deadline:
                time.sleep(0.2)
            assert memory() == (0, 0)


def test_several_slots_a_context_shift_and_saved_slots(ours: Build, copy: Path, tmp_path: Path) -> None:
    """A server with disk blocks says what the one without says."""
    prompts = ["The capital of France is", "Once upon a time,", "Water boils when", "One, two, three,"]
    slots = tmp_path / "slots"
    slots.mkdir()
    args = ("-np", 2, "-c", 256, "--no-repack", "--context-shift", "--slot-save-path", slots)

    def answers(*more: object) -> list[Any]:
        with server(ours, copy, *args, *more) as running:
            said: list[Any] = [running.complete(prompt, 12)["content"] for prompt in prompts]
            said.append(running.complete(prompts[1], 200)["content"])  # longer than a slot
            body = {"prompt": prompts[0], "n_predict": 4, "temperature": 0, "id_slot": 0}
            said.append(running.ask("/completion", body)["content"])
            said.append(running.ask("/slots/0?action=save", {"filename": "slot"})["n_saved"])
            said.append(running.ask("/slots/0?action=restore", {"filename": "slot"})["n_restored"])
            said.append(running.ask("/completion", {**body, "prompt": prompts[0] + " Paris"})["content"])
            return said

    whole = answers()
    assert answers("--disk-layers", DISK) == whole
    assert answers("--disk-layers", "0-29", "--disk-strict") == whole
