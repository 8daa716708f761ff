"""The flags in the tools: what they do, and how they refuse."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.shared.tools import complete, saved_logits, server_facts

from comparison.builds import Build
from comparison.libllama import Library, LlamaError, Override
from comparison.oracle import TEXT, left_out, of_blocks

LONG = "13;14;25;" * 40 + "13-14"  # longer than one override holds

TOOLS = [
    "llama-cli",
    "llama-completion",
    "llama-server",
    "llama-bench",
    "llama-perplexity",
    "llama-imatrix",
    "llama-fit-params",
]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 3)
    return path


@pytest.mark.parametrize(
    ("args", "env"),
    [
        (["--skip-layers", "13-14,25"], {}),
        (["--skip-layers", LONG], {}),
        (["--skip-layers", "3", "--skip-layers", "25;13-14"], {}),
        ([], {"LLAMA_ARG_SKIP_LAYERS": "13-14,25"}),
        (["--skip-layers", "13-14,25"], {"LLAMA_ARG_SKIP_LAYERS": "3"}),
        (["--override-kv", "skip.layers=str:13-14;25"], {}),
        (["--override-kv", "skip.layers=str:13-14,skip.layers.1=str:;25"], {}),
        (["--skip-layers", "13-14,25", "--skip-scale", "1"], {}),
    ],
    ids=str,
)
def test_every_way_to_give_a_set(
    stock: Build,
    ours: Build,
    smollm2: Path,
    text_file: Path,
    tmp_path: Path,
    zeroed: Any,
    args: list[str],
    env: Any,
) -> None:
    expected = saved_logits(stock, zeroed([13, 14, 25]), text_file, tmp_path / "a")
    assert saved_logits(ours, smollm2, text_file, tmp_path / "b", *args, env=env) == expected


@pytest.mark.parametrize(
    ("args", "env"),
    [
        (["--skip-layers", "13-14,25", "--skip-scale", "13:0.9;25:1.1"], {}),
        (["--skip-layers", "13-14,25"], {"LLAMA_ARG_SKIP_SCALE": "25:1.1,13:0.9"}),
        (["--override-kv", "skip.layers=str:13-14;25,skip.scale=str:13:0.9;25:1.1"], {}),
        (["--override-kv", "skip.layers=str:13-14;25", "--skip-scale", "13:0.9,25:1.1"], {}),
        (["--skip-layers", "13-14,25", "--override-kv", "skip.scale=str:13:0.9;25:1.1"], {}),
    ],
    ids=str,
)
def test_every_way_to_give_scales(
    ours: Build, smollm2: Path, text_file: Path, tmp_path: Path, args: list[str], env: Any
) -> None:
    one = ["--skip-layers", "13-14,25", "--skip-scale", "13:0.9,25:1.1"]
    expected = saved_logits(ours, smollm2, text_file, tmp_path / "a", *one)
    assert saved_logits(ours, smollm2, text_file, tmp_path / "b", *args, env=env) == expected
    assert expected != saved_logits(ours, smollm2, text_file, tmp_path / "c", *one[:2])


def test_without_flags_the_tools_are_upstreams(
    stock: Build, ours: Build, smollm2: Path, text_file: Path, tmp_path: Path
) -> None:
    expected = saved_logits(stock, smollm2, text_file, tmp_path / "a")
    assert saved_logits(ours, smollm2, text_file, tmp_path / "b") == expected
    assert saved_logits(ours, smollm2, text_file, tmp_path / "c", "--skip-layers", "none") == expected


@pytest.mark.parametrize("fit", ["on", "off"])
def test_one_line_says_what_is_left_out(ours: Build, smollm2: Path, fit: str) -> None:
    done = complete(ours, smollm2, "--skip-layers", "13-14,25", "-fit", fit)
    assert done.returncode == 0
    mib = sum(t.size for t in of_blocks(smollm2, [13, 14, 25])) / 2**20
    line = (
        f"skip: blocks 13-14,25 left out, 27 of 30 kept, {mib:.2f} MiB not loaded, 2.25 KiB less KV a token"
    )
    assert done.stderr.count(line) == 1
    assert done.stderr.count("left out") == 1
    assert "llama-skip eval FILE --skip-layers 13-14,25" in done.stderr


REFUSALS = [
    (["--skip-layers", ""], "--skip-layers: the value is empty"),
    (["--skip-layers", "13,,14"], "--skip-layers: empty item in '13,,14'"),
    (["--skip-layers", "13-"], "--skip-layers: malformed item '13-'"),
    (["--skip-layers", "20-10"], "--skip-layers: reversed range '20-10'"),
    (["--skip-layers", "3-9+0"], "--skip-layers: step 0 in '3-9+0'"),
    (["--skip-layers", "40"], "--skip-layers: block 40 is out of range, the model has blocks 0-29"),
    (["--skip-layers", "0-29"], "--skip-layers: every block is left out"),
    (["--skip-scale", "0.5"], "--skip-scale: no block is left out"),
    (["--skip-layers", "13", "--skip-scale", ""], "--skip-scale: the value is empty"),
    (["--skip-layers", "13", "--skip-scale", "nan"], "--skip-scale: the scale 'nan' is not finite"),
    (["--skip-layers", "13", "--skip-scale", "13:inf"], "--skip-scale: the scale 'inf' is not finite"),
    (["--skip-layers", "13", "--skip-scale", "14:0.5"], "--skip-scale: no gap begins at block 14"),
    (
        ["--skip-layers", "13", "--override-kv", "skip.layers=str:13"],
        "--skip-layers: also given as --override-kv",
    ),
    (
        ["--skip-layers", "13", "--skip-scale", "0.5", "--override-kv", "skip.scale=str:0.5"],
        "--skip-scale: also given as --override-kv",
    ),
    (["--override-kv", "skip.layers=str:"], "skip.layers: empty"),
    (["--override-kv", "skip.layers=str:40"], "skip.layers: block 40 is out of range"),
    (["--override-kv", "skip.layers=str:0-29"], "skip.layers: every block is left out"),
    (["--override-kv", "skip.layers=bool:true"], "skip.layers: has to be a string"),
    (["--override-kv", "skip.layers.1=str:13"], "skip.layers.1: continues a value that is not there"),
    (["--override-kv", "skip.scale=str:0.5"], "skip.scale: no block is left out"),
    (["--override-kv", "skip.layer=str:13"], "skip.layer: unknown override"),
]


@pytest.mark.parametrize("fit", ["on", "off"])
@pytest.mark.parametrize(
    ("args", "reason"), REFUSALS, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_a_refusal_is_one_clear_error(
    ours: Build, smollm2: Path, args: list[str], reason: str, fit: str
) -> None:
    done = complete(ours, smollm2, *args, "-fit", fit)
    assert done.returncode > 0
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len([line for line in lines if reason in line]) == 1, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"error: {reason}")


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_refuses_alike(ours: Build, smollm2: Path, text_file: Path, tool: str) -> None:
    more = ["-f", text_file] if tool in ("llama-perplexity", "llama-imatrix") else []
    for args, reason in REFUSALS[5:7]:
        done = ours.run(tool, "-m", smollm2, *more, *args, timeout=60)
        assert done.returncode > 0
        assert done.stderr.count(f"error: {reason}") == 1, done.stderr
        assert done.stderr.count("every block") + done.stderr.count("out of range") <= 1


def test_nothing_is_read_before_a_refusal(ours: Build, smollm2: Path) -> None:
    """Bytes that the tool read, by the kernel's account; the metadata in front of the tensors is 1.8 MB."""
    command = [str(ours.tool("llama-completion")), "-m", str(smollm2), "-lm", "none", "--skip-layers", "40"]
    tool = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.waitid(os.P_PID, tool.pid, os.WEXITED | os.WNOWAIT)
    rchar = int(Path(f"/proc/{tool.pid}/io").read_text().split()[1])
    assert tool.wait() > 0
    assert 1_700_000 < rchar < 8_000_000


def load_error(lib: Library, path: Path, overrides: Override) -> str:
    with pytest.raises(LlamaError) as error:
        lib.model(path, overrides)
    return str(error.value)


@pytest.mark.parametrize("kind", ["missing", "truncated", "not a model"])
def test_a_bad_file_gets_llama_cpps_own_reason(
    stock: Build, ours: Build, smollm2: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "model.gguf"
    if kind != "missing":
        path.write_bytes(smollm2.read_bytes()[:50_000_000] if kind == "truncated" else b"not a model" * 1000)
    expected = stock.worker.call(load_error, path, {})
    assert "error loading model" in expected
    for overrides in ({}, {"skip.layers": "13"}, {"skip.layers": "13", "skip.scale": 0.5}):
        assert ours.worker.call(load_error, path, overrides) == expected
    # what a tool says of it is upstream's as well, as far as its logging thread gets before the end
    done = complete(ours, path, "-fit", "off", "--skip-layers", "13")
    assert done.returncode == complete(stock, path, "-fit", "off").returncode != 0
    assert "skip" not in done.stderr


def test_bench_sweeps_sets(ours: Build, smollm2: Path) -> None:
    args = ("-m", smollm2, "-p", 4, "-n", 2, "-r", 1, "-t", 1, "--no-warmup")
    sets = ["none", "10-20", "13-14,3:attn,25:ffn"]
    flags = [word for text in sets for word in ("--skip-layers", text)]
    table = ours.run("llama-bench", *args, *flags)
    assert table.returncode == 0, table.stderr
    rows = [[cell.strip() for cell in line.split("|")] for line in table.stdout.splitlines() if "|" in line]
    column = rows[0].index("skip_layers")
    assert [row[column] for row in rows[2:]] == [text for text in sets for _ in range(2)]

    found = json.loads(ours.run("llama-bench", *args, *flags, "-o", "json").stdout)
    full = next(r["model_size"] for r in found if r["skip_layers"] == "none")
    for run in found:
        gone = [] if run["skip_layers"] == "none" else left_out(smollm2, run["skip_layers"])
        assert run["model_size"] == full - sum(t.size for t in gone)

    plain = json.loads(ours.run("llama-bench", *args, "-o", "json").stdout)
    assert [r["model_size"] for r in plain] == [full, full]


def test_server_reports_the_set(ours: Build, smollm2: Path) -> None:
    props, _ = server_facts(ours, smollm2, "--skip-layers", "3:ffn,25,13-14", "--skip-scale", "13:0.9")
    n_bytes = sum(t.size for t in left_out(smollm2, "13-14,25,3:ffn"))
    facts = json.dumps(props["skip"])
    assert '"13-14,25,3:ffn"' in facts
    assert "13:0.9" in facts
    assert props["skip"]["n_layer_kept"] == 27
    assert props["skip"]["bytes_not_loaded"] == n_bytes


def test_a_draft_model_has_its_own_set(ours: Build, smollm2: Path) -> None:
    draft = ("-md", str(smollm2), "-fit", "off")
    _, log = server_facts(ours, smollm2, *draft, "--skip-layers", "13", "--skip-layers-draft", "5-9")
    lines = [line.partition("skip: ")[2] for line in log.splitlines() if "left out" in line]
    assert sorted(line.split(",")[0] for line in lines) == ["blocks 13 left out", "blocks 5-9 left out"]
    _, log = server_facts(ours, smollm2, *draft, "--skip-layers", "13")
    assert len([line for line in log.splitlines() if "left out" in line]) == 1


def test_versions_name_llama_skip(ours: Build) -> None:
    for tool in (*TOOLS, "llama-imatrix"):
        done = ours.run(tool, "--version")
        if done.returncode == 0:
            assert "llama-skip 0." in done.stdout + done.stderr, tool
            assert "0c1e57098" in done.stdout + done.stderr, tool
