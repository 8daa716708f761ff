"""`llama-skip bench`: its rows against what is found in another way, what it writes and what it refuses."""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_skip import Llama, bench_model, evaluate
from llama_skip.bench import hostmemory
from llama_skip.bench.bench import MARGIN, fitted, measured
from llama_skip.bench.file import COLD, FULL, HEALED, LEFT_OUT, NO_KV, STRICT, UNREPACKED, WARM, notes
from llama_skip.cli import main
from llama_skip.progress import progress
from support.disk_pages import PAGE, cached_pages, disk_pages
from support.plan_files import random_bypass, write_gguf, write_json
from support.rpc import rpc_device
from support.shared.prose import PROSE
from support.shared.tools import tool_perplexity

from comparison.builds import Build
from comparison.oracle import expand, of_blocks, tensors

MIB = 2**20
DISK = "1-29+2"
ROWS = [FULL, UNREPACKED, WARM, COLD, STRICT, NO_KV, LEFT_OUT]
ON_DISK = [WARM, COLD, STRICT, NO_KV]
CONTEXTS = [32, 128]
ONE = {"n_threads": 1, "n_threads_batch": 1}
TEXT = {"n_ctx": 64, "n_windows": 2}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(PROSE)
    return path


@pytest.fixture(scope="module")
def copy(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that no other process maps."""
    path = tmp_path_factory.mktemp("copy") / "copy.gguf"
    with path.open("wb") as file, smollm2.open("rb") as source:
        shutil.copyfileobj(source, file)
        file.flush()
        os.fsync(file.fileno())
    return path


@pytest.fixture(scope="module")
def found(ours: Build, copy: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run on a device: what is printed, and the files."""
    folder = tmp_path_factory.mktemp("bench")
    files = {"-o": folder / "bench.md", "--json": folder / "bench.json", "--png": folder / "bench.png"}
    args = [copy, "--disk-layers", DISK, "--contexts", *CONTEXTS, "--rounds", 1, "-f", text]
    args += ["-c", 64, "--windows", 2, "-t", 1, *(word for pair in files.items() for word in pair)]
    with rpc_device(ours.tool("ggml-rpc-server")) as device:
        code = "import sys; from llama_skip.cli import main; sys.exit(main(['bench', *sys.argv[1:]]))"
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, [*args, "--rpc", device.endpoint])],
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    content = json.loads(files["--json"].read_text())
    rows = {row["name"]: row for row in content["rows"]}
    return {"printed": done.stdout, "json": content, "rows": rows, "folder": folder}


def test_every_row_is_there(found: dict[str, Any]) -> None:
    content = found["json"]
    assert (content["format"], content["version"]) == ("llama-skip-bench", 1)
    assert list(found["rows"]) == ROWS
    for row in found["rows"].values():
        assert row["failed"] == ""
        assert [speed["n_context_tokens"] for speed in row["speeds"]] == CONTEXTS
        for speed in row["speeds"]:
            assert len(speed["prompt_tokens_per_s"]) == len(speed["generation_tokens_per_s"]) == 1
            assert min(speed["prompt_tokens_per_s"] + speed["generation_tokens_per_s"]) > 0
        assert (row["reading"] is None) == (row["name"] != COLD)


def test_perplexity_on_disk_is_that_of_the_full_model(
    found: dict[str, Any], ours: Build, copy: Path, text: Path
) -> None:
    rows = found["rows"]
    for name in [UNREPACKED, *ON_DISK]:
        assert rows[name]["perplexity"] == rows[FULL]["perplexity"], name
    args = ("-c", 64, "--chunks", 2, "-b", 64, "-ub", 64, "--no-repack")
    assert f"{rows[FULL]['perplexity']:.4f}" == tool_perplexity(ours, copy, text, *args)[0]
    assert rows[LEFT_OUT]["perplexity"] > 2 * rows[FULL]["perplexity"]


def test_devices_hold_less_at_standby_and_while_generating(found: dict[str, Any], copy: Path) -> None:
    sizes = {t.name: t.padded for t in tensors(copy)}
    out = sum(t.padded for t in of_blocks(copy, expand(DISK)))
    for name, row in found["rows"].items():
        expected = sum(sizes.values()) - (out if name in [*ON_DISK, LEFT_OUT] else 0)
        for when in ("standby", "generating"):
            (used,) = row[when]["device_mib"].values()
            assert used["weights"] == pytest.approx(expected / MIB, abs=0.01), (name, when)
    full, disk = (found["rows"][name] for name in (FULL, WARM))
    for when in ("standby", "generating"):
        ((whole,), (half,)) = (row[when]["device_mib"].values() for row in (full, disk))
        assert half["kv"] == whole["kv"] / 2
        assert half["compute"] <= whole["compute"] + 30 * 512 * 576 * 4 / MIB


def test_the_host_maps_the_disk_blocks_only_while_they_run(found: dict[str, Any], copy: Path) -> None:
    on_disk = len(disk_pages(copy, expand(DISK))) * PAGE / MIB
    block = max(sum(t.size for t in of_blocks(copy, [il])) for il in range(30)) / MIB
    mapped = {
        name: [row[when]["host_mapped_rss_mib"] for when in ("standby", "generating")]
        for name, row in found["rows"].items()
    }
    for name in (WARM, NO_KV):  # a standby takes pages beside disk blocks along, of folios at their ends
        standby, generating = mapped[name]
        assert generating - standby == pytest.approx(on_disk, rel=0.05)
    standby, generating = mapped[STRICT]
    assert 0 < generating - standby < 2 * block
    for name in (FULL, UNREPACKED, LEFT_OUT):
        assert mapped[name][0] == mapped[name][1] > 0
    for row in found["rows"].values():
        for when in ("standby", "generating"):
            assert row[when]["host_mapped_pss_mib"] == pytest.approx(row[when]["host_mapped_rss_mib"])
            assert row[when]["host_allocated_mib"] > 1
        # the KV cache of the blocks on the host, 168 cells in 256
        assert row["generating"]["host_allocated_mib"] >= row["standby"]["host_allocated_mib"] - 1


def test_the_cold_row_was_cold(found: dict[str, Any], copy: Path) -> None:
    reading = found["rows"][COLD]["reading"]
    sizes = sum(t.size for t in of_blocks(copy, expand(DISK))) / MIB
    assert reading["disk_mib"] == pytest.approx(sizes, rel=0.001)
    assert reading["still_cached_mib"] < 0.01 * sizes
    assert len(reading["pass_mib_per_s"]) == len(reading["sequential_mib_per_s"]) == 3
    assert "it was not cold" not in found["printed"]


def test_a_file_that_stays_in_the_page_cache_is_told(tiny: Path, text: Path) -> None:
    kwargs: dict[str, Any] = {"contexts": [16], "n_rounds": 1, "text": text, **TEXT, **ONE}
    with tiny.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[::PAGE]) > 0  # now its pages are this process's, too
        bench = bench_model(tiny, "1-2", **kwargs)
    (line,) = (line for line in notes(bench) if "it was not cold" in line)
    mib = sum(t.size for t in of_blocks(tiny, [1, 2])) / MIB
    assert re.search(rf"{mib:.1f} MiB stayed in the page cache: another process maps the file", line), line


def test_figures_follow_from_the_rows(found: dict[str, Any]) -> None:
    rows, figures = found["rows"], found["json"]["figures"]

    def ratio(name: str, base: str) -> dict[str, float]:
        return {
            str(n): statistics.median(
                a / b
                for a, b in zip(
                    *(rows[row]["speeds"][i]["generation_tokens_per_s"] for row in (name, base)), strict=True
                )
            )
            for i, n in enumerate(CONTEXTS)
        }

    assert figures["generation_over_full_not_repacked"] == ratio(WARM, UNREPACKED)
    assert figures["generation_over_full"] == ratio(WARM, FULL)
    assert figures["generation_over_no_kv_cache"] == ratio(WARM, NO_KV)
    assert min(figures["generation_over_no_kv_cache"].values()) > 2
    reading = rows[COLD]["reading"]
    share = np.median(np.divide(reading["pass_mib_per_s"], reading["sequential_mib_per_s"]))
    assert figures["cold_read_over_sequential_read"] == pytest.approx(share)


def test_what_is_printed_is_markdown_of_the_same(found: dict[str, Any]) -> None:
    printed = found["printed"]
    assert (found["folder"] / "bench.md").read_text() == printed
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    head, rule, *rows = cells
    assert all(re.fullmatch("-+:?", cell) for cell in rule)
    assert [row[0] for row in rows] == ROWS
    for row in rows:
        made = dict(zip(head, row, strict=True))
        of = found["rows"][row[0]]
        assert made["perplexity"] == f"{of['perplexity']:.4f}" or of["perplexity"] >= 1e4
        for when in ("standby", "generating"):
            (used,) = of[when]["device_mib"].values()
            assert made[f"devices: {when} MiB"] == f"{sum(used.values()):.1f}"
            assert made[f"host mapped: {when} MiB"] == f"{of[when]['host_mapped_rss_mib']:.1f}"
        speed = of["speeds"][1]["generation_tokens_per_s"][0]
        assert made["generation after 128 t/s"] == f"{speed:.3g}"


def test_the_picture(found: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    pixels = imread(found["folder"] / "bench.png")
    assert pixels.shape[0] > 600 and pixels.shape[1] > 1500
    blue = (31 / 255, 95 / 255, 191 / 255)
    assert (abs(pixels[..., :3] - blue).max(axis=-1) < 0.01).sum() > 1000


def test_a_healed_plan(tiny: Path, text: Path, tmp_path: Path) -> None:
    """On the CPU alone, two rounds: each row has the perplexity that eval finds."""
    plan = write_gguf(tmp_path / "healed.gguf", tiny, "1", [random_bypass(1, 64, 4)], arch="qwen3")
    lines: list[str] = []
    kwargs: dict[str, Any] = {"text": text, **TEXT, **ONE}
    bench = bench_model(tiny, "1-2", plan=plan, contexts=[16], n_rounds=2, log=lines.append, **kwargs)
    assert [row.name for row in bench.rows] == [*ROWS, HEALED]
    assert lines == [f"{plan} leaves out 1, on disk are 1-2"]
    expected = evaluate(tiny, ["1-2"], plans=[plan], speed=False, **kwargs).rows
    for name, row in zip((FULL, LEFT_OUT, HEALED), expected, strict=True):
        of = bench.row(name)
        assert of and (of.perplexity, of.perplexity_error) == (row.perplexity, row.perplexity_error)
    unrepacked = bench.row(UNREPACKED)
    for row in bench.rows:
        assert len(row.speeds) == 1 and len(row.speeds[0].generation_tokens_per_s) == 2
        assert row.standby and row.generating and not row.generating.device_mib
        if row.name in ON_DISK:
            assert unrepacked and row.perplexity == unrepacked.perplexity


def test_what_is_not_repacked(ours: Build, smollm2: Path, text: Path, tmp_path: Path) -> None:
    """Q4_0 is repacked on most CPUs, which takes memory and rounds differently."""
    model = tmp_path / "q4_0.gguf"
    assert ours.run("llama-quantize", "--allow-requantize", smollm2, model, "Q4_0").returncode == 0
    bench = bench_model(model, "13", contexts=[16], n_rounds=1, text=text, **TEXT, **ONE)
    sizes = ("-c", 64, "--chunks", 2, "-b", 64, "-ub", 64)
    full, plain = bench.row(FULL), bench.row(UNREPACKED)
    assert full and plain and full.generating and plain.generating
    assert f"{full.perplexity:.4f}" == tool_perplexity(ours, model, text, *sizes)[0]
    assert f"{plain.perplexity:.4f}" == tool_perplexity(ours, model, text, *sizes, "--no-repack")[0]
    log: list[str] = []
    Llama(model, log=lambda level, text: log.append(text), **ONE).close()
    buffers = re.findall(r"CPU_REPACK model buffer size = +([\d.]+) MiB", "".join(log))
    repacked = float(buffers[0]) if buffers else 0.0
    more = full.generating.host_allocated_mib - plain.generating.host_allocated_mib
    assert more == pytest.approx(repacked, abs=4)


def test_ranges_and_pages(copy: Path) -> None:
    blocks = [1, 2, 7]
    ranges = hostmemory.block_ranges(copy, blocks)
    assert [r.path for r in ranges] == [copy] * len(ranges) and len(ranges) <= 6
    inside = {at for r in ranges for at in (r.first, r.last)}
    of = of_blocks(copy, blocks)
    assert min(inside) == min(t.offset for t in of) and max(inside) >= max(t.end for t in of)
    assert sum(r.last - r.first for r in ranges) == sum(t.padded for t in of)
    assert hostmemory.read_in_order(ranges) > 0
    pages = disk_pages(copy, blocks)
    assert pages <= cached_pages(copy)
    assert hostmemory.cached(ranges) == pytest.approx(len(pages) * PAGE / MIB, abs=6 * PAGE / MIB)
    with copy.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert hostmemory.cached(ranges) == 0


def test_prompts_are_as_long_as_the_model_allows() -> None:
    lines: list[str] = []
    assert fitted([100, 4000, 100], 8192, lines.append) == [100, 4000]
    assert fitted([4000], 0, lines.append) == [4000]
    assert lines == []
    assert fitted([100, 2048, 4000], 2048, lines.append) == [100, 2048 - MARGIN]
    assert lines == [
        f"the model was trained with contexts of 2048 tokens: prompts have at most {2048 - MARGIN}"
    ]
    with pytest.raises(ValueError, match="contexts of 32 tokens"):
        fitted([100], 32, lines.append)


def test_a_worker_that_fails(tiny: Path, tmp_path: Path) -> None:
    job = {
        "model": str(tiny),
        "options": {"n_ctx": 64, "verbose": False, **ONE},
        "tokens": [1, 2, 3],
        "n_text_ctx": 32,
        "contexts": [8],
        "n_timed": 2,
        "cold": False,
        "kv_cache": True,
        "first": False,
    }
    with progress(1, shown=False) as bar:
        ((prompt, generation),) = measured("it", job, bar)["speeds"]
        assert prompt > 0 < generation
        broken = tmp_path / "broken.gguf"
        broken.write_bytes(tiny.read_bytes()[:-1000])
        assert "failed" in measured("it", {**job, "model": str(broken)}, bar)
        with pytest.raises(RuntimeError, match=r"^it: .*is out of range"):
            measured("it", {**job, "tokens": [10**8]}, bar)
        with pytest.raises(RuntimeError, match=r"^it: "):
            measured("it", {**job, "model": str(tmp_path / "none.gguf")}, bar)


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    try:
        code = main(["bench", *map(str, args), "-t", "1"])
    except SystemExit as err:
        code = int(err.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_bad_input(
    tiny: Path, smollm2: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_json(tmp_path / "plan.json", smollm2, "13")
    sizes = ("-f", text, "-c", 64, "--contexts", 16)
    on_disk = ("--disk-layers", "1")
    for args, code, message in (
        (
            ("--disk-layers", "4"),
            2,
            "error: --disk-layers: block 4 is out of range, the model has blocks 0-3",
        ),
        (("--disk-layers", "none"), 2, "no block is on disk"),
        (("--disk-layers", ""), 2, "--disk-layers: empty"),
        ((), 2, "--disk-layers"),
        ((*on_disk, "--contexts", 0), 2, "--contexts: 0 is too small, the least is 1"),
        ((*on_disk, "--rounds", 0), 2, "--rounds: 0 is too small, the least is 1"),
        ((*on_disk, "-c", 8), 2, "--ctx-size: 8 is too small, the least is 32"),
        ((*on_disk, "--windows", -1), 2, "--windows: -1 is too small"),
        ((*on_disk, "--plan", plan), 1, "plan.json is about another model: SmolLM2"),
        ((*on_disk, "--plan", tmp_path / "no.json"), 1, "no.json: No such file"),
        ((*on_disk, "-c", 4096), 1, "tokens do not fill a window of 4096"),
        ((*on_disk, "--json", tmp_path / "no" / "bench.json"), 1, "bench.json: No such file"),
        ((*on_disk, "--json", tiny), 2, "tiny.gguf is what is measured, name another file to write"),
        ((*on_disk, "--json", tmp_path / "x", "-o", tmp_path / "x"), 2, "need a file each"),
        ((*on_disk, "--rpc", "127.0.0.1:1"), 1, "cannot connect to 127.0.0.1:1"),
    ):
        found, out, err = run(capsys, tiny, *sizes, *args)
        assert (found, out) == (code, ""), (args, err)
        assert message in err and "Traceback" not in err
    assert run(capsys, tmp_path / "no.gguf", *sizes, *on_disk)[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_picture_needs_matplotlib(tiny: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['matplotlib'] = None\n"
    code += "from llama_skip.cli.bench import main; sys.exit(main())"
    args = [tiny, "--disk-layers", "1", "--png", tmp_path / "a.png"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: charts need matplotlib: pip install 'llama-skip[report]'\n"
    assert list(tmp_path.iterdir()) == []
