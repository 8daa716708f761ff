"""auto:P%, auto:K, @NAME and @PATH: what they choose, everywhere, and how they are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.metadata import Value, annotated_copy, write_sidecar
from support.rpc import rpc_device
from support.shared.tools import complete, saved_logits, server_facts

from comparison.builds import Build
from comparison.libllama import LlamaError
from comparison.oracle import TEXT, expand, logits, tensors

ORDER = [2, 1, 0]
KLD = [0.125, 0.25, 0.5]
TOKENS = [1, 338, 2501, 99, 7]
OTHER_WEIGHTS = "same architecture and shapes, but other weights (another quantization, or a fine-tune)"


def identity(path: Path) -> dict[str, Value]:
    from llama_skip import _core

    found = _core.identify(str(path))
    return {key: found[key] for key in ("model_id", "file_id")}


def under(prefix: str, values: dict[str, Value]) -> dict[str, Value]:
    return {f"{prefix}.{key}": value for key, value in values.items()}


def score(path: Path, /, **changes: Value) -> dict[str, Value]:
    values = {"version": 1, **identity(path), "path": ORDER, "path.kld": KLD, "metric": "kld"}
    return under("skip.score", {**values, **changes})


def plan(name: str, path: Path, layers: str, /, **changes: Value) -> dict[str, Value]:
    return under(f"skip.plan.{name}", {"version": 1, **identity(path), "layers": layers, **changes})


def plan_file(path: Path, model: Path, layers: str, /, **changes: Any) -> Path:
    content = {
        "format": "llama-skip-plan",
        "version": 1,
        "model": {"name": model.name, **identity(model)},
        "skip_layers": layers,
        "skip_scale": "",
        "found": {"method": "greedy", "kld": 0.75},
    }
    path.write_text(json.dumps({**content, **changes}))
    return path


@pytest.fixture(scope="module")
def scored(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a score and two plans in its metadata."""
    notes = score(tiny) | plan("fast", tiny, "1,3", scale="1:0.5") | plan("low-1", tiny, "3", kld=0.375)
    return annotated_copy(tiny, tmp_path_factory.mktemp("scored") / "scored.gguf", notes)


@pytest.fixture
def bare(tiny: Path, tmp_path: Path) -> Path:
    """The tiny model, in a folder of its own."""
    path = tmp_path / "bare.gguf"
    path.symlink_to(tiny)
    return path


def chosen(make: Callable[..., Any], path: Path, layers: str, **kwargs: Any) -> tuple[int, ...]:
    found: tuple[int, ...] = make(path, skip_layers=layers, **kwargs).skip_layers
    return found


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("auto:1", (2,)),
        ("auto:3", (0, 1, 2)),
        ("auto:25%", (2,)),
        ("auto:10%", (2,)),  # at least one
        ("auto:49.999999%", (2,)),
        ("auto:50%", (1, 2)),
        ("auto:99.9%", (0, 1, 2)),
        ("@fast", (1, 3)),
        ("@low-1", (3,)),
    ],
)
def test_what_the_metadata_chooses(
    make: Callable[..., Any], tiny: Path, scored: Path, bare: Path, text: str, blocks: tuple[int, ...]
) -> None:
    assert chosen(make, scored, text) == blocks
    write_sidecar(bare.with_suffix(".skip.gguf"), "qwen3", score(tiny) | plan("fast", tiny, "1,3"))
    if text != "@low-1":
        assert chosen(make, bare, text) == blocks


def test_shares_round_down_exactly(make: Callable[..., Any], smollm2: Path, tmp_path: Path) -> None:
    """10, 20 and 30 % of 30 blocks are 3, 6 and 9, though 0.1 * 30 is below 3 for a double."""
    path = tmp_path / "model.gguf"
    path.symlink_to(smollm2)
    order = list(range(20, 2, -1))
    notes = score(smollm2, path=order, **{"path.kld": [0.1] * len(order)})
    write_sidecar(tmp_path / "model.skip.gguf", "llama", notes)
    for percent, n in ((10, 3), (20, 6), (30, 9), (33.3, 9), (3.4, 1), (7, 2)):
        assert len(chosen(make, path, f"auto:{percent}%", dry_run=True)) == n


def test_the_models_own_metadata_comes_first(
    make: Callable[..., Any], tiny: Path, scored: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    shutil.copyfile(scored, path)
    notes = score(tiny, path=[3, 0, 1]) | plan("fast", tiny, "0") | plan("slow", tiny, "0")
    write_sidecar(tmp_path / "model.skip.gguf", "qwen3", notes)
    assert chosen(make, path, "auto:1") == (2,)
    assert chosen(make, path, "@fast") == (1, 3)
    assert chosen(make, path, "@slow") == (0,)


def test_logits_are_those_of_the_set_given_by_hand(
    ours: Build, tiny: Path, scored: Path, tmp_path: Path
) -> None:
    by_file = plan_file(tmp_path / "plan.json", tiny, "1-2", skip_scale="1:0.5")
    for text, by_hand in (
        ("auto:50%", {"skip.layers": "1-2"}),
        ("@fast", {"skip.layers": "1,3", "skip.scale": "1:0.5"}),
        (f"@{by_file}", {"skip.layers": "1-2", "skip.scale": "1:0.5"}),
    ):
        found = ours.worker.call(logits, scored, TOKENS, {"skip.plan": text}, n_single=2)
        expected = ours.worker.call(logits, scored, TOKENS, by_hand, n_single=2)
        assert np.array_equal(found, expected), text
    found = ours.worker.call(
        logits, scored, TOKENS, {"skip.plan": "auto:1", "skip.scale": "2:0.5"}, n_single=2
    )
    by_hand = {"skip.layers": "2", "skip.scale": "2:0.5"}
    assert np.array_equal(found, ours.worker.call(logits, scored, TOKENS, by_hand, n_single=2))


def test_a_long_path_goes_on_in_further_overrides(
    ours: Build, make: Callable[..., Any], tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    text = f"@{plan_file(folder / 'plan.json', tiny, '1')}"
    assert len(text) > 200
    assert chosen(make, tiny, text) == (1,)
    parts = {("skip.plan" if i == 0 else f"skip.plan.{i}"): text[i * 100 : i * 100 + 100] for i in range(5)}
    overrides = {key: part for key, part in parts.items() if part}
    found = ours.worker.call(logits, tiny, TOKENS, overrides, n_single=2)
    assert np.array_equal(found, ours.worker.call(logits, tiny, TOKENS, {"skip.layers": "1"}, n_single=2))
    done = complete(ours, tiny, "--skip-layers", text)
    assert done.returncode == 0
    assert "/plan.json, from a plan file, KL divergence 0.75" in done.stderr


def log_of(make: Callable[..., Any], path: Path, layers: str) -> str:
    lines: list[str] = []
    make(path, skip_layers=layers, log=lambda level, text: lines.append(text))
    return "".join(lines)


def test_the_log_says_where_a_plan_is_from(make: Callable[..., Any], scored: Path) -> None:
    log = log_of(make, scored, "auto:50%")
    assert "blocks 1-2 left out" in log
    assert "chosen by auto:50%, from the model's metadata, KL divergence 0.25\n" in log
    assert "llama-skip eval" not in log
    assert "chosen by @fast, from the model's metadata\n" in log_of(make, scored, "@fast")
    assert "llama-skip eval FILE --skip-layers 1-2" in log_of(make, scored, "1,2")


@pytest.mark.parametrize("text", ["auto:1", "@fast", "@plan.json"])
def test_a_plan_of_another_file_is_used_with_a_line(
    make: Callable[..., Any], tiny: Path, bare: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(bare.parent)
    for file_id, n_lines in ((identity(tiny)["file_id"], 0), ("0123456789abcdef", 1)):
        notes = score(tiny, file_id=file_id) | plan("fast", tiny, "2", file_id=file_id)
        write_sidecar(bare.with_suffix(".skip.gguf"), "qwen3", notes)
        plan_file(Path("plan.json"), tiny, "2", model={**identity(tiny), "file_id": file_id})
        log = log_of(make, bare, text)
        assert log.count("blocks 2 left out") == 1
        assert log.count(OTHER_WEIGHTS) == n_lines


def test_a_plan_may_leave_nothing_out(make: Callable[..., Any], tiny: Path, bare: Path) -> None:
    write_sidecar(bare.with_suffix(".skip.gguf"), "qwen3", plan("all", tiny, "none"))
    assert chosen(make, bare, "@all") == ()
    assert "@all, from" in log_of(make, bare, "@all")
    assert "leaves no block out" in log_of(make, bare, "@all")


def test_what_annotate_and_a_plan_file_say_is_read(
    make: Callable[..., Any], bare: Path, tmp_path: Path
) -> None:
    from llama_skip import annotate_model
    from llama_skip.files.identity import TextInfo, identify
    from llama_skip.plan.file import Plan, write_plan
    from llama_skip.score.file import BlockScore, Score, Step

    about = identify(bare)
    text = TextInfo("file", "a.txt", "0" * 64, 64, 32, 2, 32)
    path = [Step(block, 9.0, 0.1, 0.25, 0.01, 0.5, 32, 1000) for block in (3, 1)]
    score = Score(about, text, {}, True, 8.0, 0.1, [BlockScore(il) for il in range(4)], [], path)
    plans = {"fast": Plan(about, "1-2", "1:0.5"), "all": Plan(about, "")}
    annotate_model(bare, score=score, plans=plans)
    assert chosen(make, bare, "auto:50%") == (1, 3)
    assert chosen(make, bare, "@all") == ()
    write_plan(tmp_path / "plan.json", plans["fast"])
    for named in ("@fast", f"@{tmp_path / 'plan.json'}"):
        llm = make(bare, skip_layers=named)
        assert llm.skip_layers == (1, 2)
        assert llm.skip_scale == {1: 0.5}


WORDING = "expected auto:P%, auto:K, @NAME or @PATH"

BAD_TEXT = [
    ("auto:", WORDING),
    ("auto:x", WORDING),
    ("auto:-1", WORDING),
    ("auto:1.5", WORDING),
    ("auto:5,6", WORDING),
    ("auto:1e1%", WORDING),
    ("auto:%", WORDING),
    ("auto:0", "at least one block has to go"),
    ("auto:0%", "a share of the blocks has to be above 0% and below 100%"),
    ("auto:100%", "a share of the blocks has to be above 0% and below 100%"),
    ("@", WORDING),
    ("@fa st", WORDING),
    ("@6", "a name is not a number, did you mean auto:6?"),
]


@pytest.mark.parametrize(("text", "reason"), BAD_TEXT)
def test_malformed_plans(make: Callable[..., Any], scored: Path, text: str, reason: str) -> None:
    with pytest.raises(ValueError) as error:
        make(scored, skip_layers=text)
    assert str(error.value).startswith(f"skip_layers: '{text}': {reason}")


def refused(make: Callable[..., Any], path: Path, text: str, *reasons: str, **kwargs: Any) -> None:
    with pytest.raises(ValueError) as error:
        make(path, skip_layers=text, **kwargs)
    assert str(error.value).startswith(f"skip_layers: '{text}': ")
    for reason in reasons:
        assert reason in str(error.value)


def test_what_is_missing_is_an_error(make: Callable[..., Any], tiny: Path, scored: Path, bare: Path) -> None:
    refused(make, bare, "auto:1", "the model brings no greedy path")
    refused(make, bare, "@fast", "no plan of that name", "known: none")
    refused(make, scored, "@quick", "no plan of that name", "known: fast, low-1")
    refused(make, scored, "auto:4", "the model has 4 blocks, at least one has to stay")
    refused(make, scored, "@nowhere.json", "the file cannot be read")
    refused(make, bare, "@./fast", "the file cannot be read")
    sidecar = bare.with_suffix(".skip.gguf")
    write_sidecar(sidecar, "qwen3", score(tiny, path=[2], **{"path.kld": [0.1]}))
    refused(make, bare, "auto:2", "has 1 blocks, 2 are needed", sidecar.name)
    sidecar.write_bytes(b"GGUF, but no more")
    refused(make, bare, "auto:1", f"{sidecar.name} is not a readable GGUF file")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 3}, "has version 3, this build knows 1-2"),
        ({"version": "1"}, "metadata skip.score.version: expected an integer, found str"),
        ({"model_id": "0123456789abcdef"}, "is about another model (0123456789abcdef, this one is"),
        ({"path": [4, 1]}, "names block 4, which is not there"),
        ({"path": [1, 1]}, "names block 1 twice"),
        ({"path": [0.5, 1.0]}, "metadata skip.score.path: expected an array of i32"),
    ],
)
def test_a_score_that_does_not_fit_is_refused(
    make: Callable[..., Any], tiny: Path, bare: Path, changes: dict[str, Value], reason: str
) -> None:
    write_sidecar(bare.with_suffix(".skip.gguf"), "qwen3", score(tiny, **changes))
    refused(make, bare, "auto:2", reason)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "skip.plan.fast of"),
        ({"model_id": "0123456789abcdef"}, "is about another model"),
        ({"layers": "4"}, "block 4 is out of range, the model has blocks 0-3"),
        ({"layers": "auto:1"}, "'auto:1' is looked up when a model is loaded"),
        ({"scale": "2:0.5"}, "no gap begins at block 2"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    make: Callable[..., Any], tiny: Path, bare: Path, changes: dict[str, Value], reason: str
) -> None:
    write_sidecar(
        bare.with_suffix(".skip.gguf"), "qwen3", plan("fast", tiny, "1") | under("skip.plan.fast", changes)
    )
    with pytest.raises(ValueError) as error:
        make(bare, skip_layers="@fast")
    assert str(error.value).startswith("skip_layers: ")
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "llama-skip-score"}, "not a plan file"),
        ({"version": 2}, "the plan file has version 2, this build knows 1"),
        ({"version": None}, "not a whole plan file"),
        ({"model": {}}, "not a whole plan file"),
        ({"model": {"model_id": "0", "file_id": "0"}}, "the plan file is about another model"),
        ({"skip_layers": [1]}, "not a whole plan file"),
    ],
)
def test_a_plan_file_that_does_not_fit_is_refused(
    make: Callable[..., Any], tiny: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    refused(make, tiny, f"@{plan_file(tmp_path / 'plan.json', tiny, '1', **changes)}", reason)


def test_a_file_that_is_no_json_is_refused(make: Callable[..., Any], tiny: Path, tmp_path: Path) -> None:
    for content in (b"", b"{", b"[1]", b"\xff\xfe"):
        (tmp_path / "plan.json").write_bytes(content)
        refused(make, tiny, f"@{tmp_path / 'plan.json'}", "not a plan file")


def test_a_plan_beside_something_else(make: Callable[..., Any], ours: Build, scored: Path) -> None:
    def message(**kwargs: Any) -> str:
        with pytest.raises(ValueError) as error:
            make(scored, **kwargs)
        return str(error.value)

    both = {"skip.plan": "auto:1", "skip.layers": "1"}
    assert "skip.plan: given beside skip.layers, give one of them" in message(kv_overrides=both)
    assert "also given as kv_overrides['skip.plan']" in message(
        skip_layers="1", kv_overrides={"skip.plan": "auto:1"}
    )
    assert "the plan '@fast' brings scales of its own (1:0.5)" in message(skip_layers="@fast", skip_scale=0.5)
    assert message(kv_overrides={"skip.plan": "@quick"}).startswith("skip.plan: '@quick': ")
    assert "'auto:1' is looked up when a model is loaded" in message(kv_overrides={"skip.layers": "auto:1"})
    for overrides, reason in ((both, "give one of them"), ({"skip.plan": "@quick"}, "known: fast, low-1")):
        with pytest.raises(LlamaError, match=reason):
            ours.worker.call(logits, scored, TOKENS, overrides)


def test_a_mask_may_be_a_plan(make: Callable[..., Any], scored: Path, tiny: Path, tmp_path: Path) -> None:
    """The mask is the plan's set, and the model's beside it."""
    path = plan_file(tmp_path / "plan.json", tiny, "1-2", skip_scale="1:0.5")
    llm = make(scored, skip_layers="auto:1")
    for text, layers, scale in (
        ("auto:2", "1-2", None),
        ("@low-1", "3", None),
        (f"@{path}", "1-2", "1:0.5"),
    ):
        llm.set_mask(text)
        assert llm.mask == tuple(sorted({2, *expand(layers)}))
        found = llm.logits(TOKENS)
        llm.set_mask(layers, scale)
        assert np.array_equal(llm.logits(TOKENS), found)
    assert llm.skip_layers == (2,)
    # its gap at block 1 would be blocks 1-3 here
    with pytest.raises(ValueError, match="mask: the plan scales the gap of blocks 1, that is no gap"):
        llm.set_mask("@fast")
    assert llm.mask == (1, 2)


#
# the tools
#


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 3)
    return path


@pytest.mark.parametrize(
    ("args", "env"),
    [
        (["--skip-layers", "auto:50%"], {}),
        ([], {"LLAMA_ARG_SKIP_LAYERS": "auto:2"}),
        (["--override-kv", "skip.plan=str:auto:50%"], {}),
        (["--skip-layers", "@pair"], {}),
    ],
    ids=str,
)
def test_every_way_to_give_a_plan(
    ours: Build, tiny: Path, bare: Path, text_file: Path, tmp_path: Path, args: list[str], env: dict[str, str]
) -> None:
    write_sidecar(bare.with_suffix(".skip.gguf"), "qwen3", score(tiny) | plan("pair", tiny, "1-2"))
    expected = saved_logits(ours, tiny, text_file, tmp_path / "a", "--skip-layers", "1-2")
    assert saved_logits(ours, bare, text_file, tmp_path / "b", *args, env=env) == expected


def test_the_tools_say_where_a_plan_is_from(ours: Build, tiny: Path, bare: Path) -> None:
    sidecar = bare.with_suffix(".skip.gguf")
    write_sidecar(sidecar, "qwen3", score(tiny, file_id="0123456789abcdef"))
    origin = f"chosen by auto:50%, from {sidecar}, KL divergence 0.25"
    for done in (
        complete(ours, bare, "--skip-layers", "auto:50%"),
        ours.run("llama-fit-params", "-m", bare, "-c", "128", "--skip-layers", "auto:50%"),
        ours.run(
            "llama-bench", "-m", bare, *("-p", 2, "-n", 0, "-r", 1, "-t", 1), "--skip-layers", "auto:50%"
        ),
    ):
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(origin) == 1
        assert done.stderr.count(OTHER_WEIGHTS) == 1


def test_the_tools_refuse_before_loading(ours: Build, scored: Path) -> None:
    for args, reason in (
        (["--skip-layers", "auto:0"], "--skip-layers: 'auto:0': at least one block has to go"),
        (["--skip-layers", "@quick"], "--skip-layers: '@quick': the model brings no plan of that name"),
        (
            ["--skip-layers", "auto:1", "--override-kv", "skip.plan=str:auto:1"],
            "also given as --override-kv skip.plan",
        ),
        (
            ["--skip-layers", "auto:1", "--override-kv", "skip.layers=str:1"],
            "also given as --override-kv skip.layers",
        ),
        (["--skip-layers", "@fast", "--skip-scale", "0.5"], "--skip-scale: the plan '@fast' brings scales"),
    ):
        done = complete(ours, scored, *args)
        assert done.returncode != 0
        assert reason in done.stderr
        assert "load_tensors" not in done.stderr
        if "--override-kv" not in args:
            bench = ours.run("llama-bench", "-m", scored, "-p", 2, "-n", 0, "-r", 1, *args)
            assert bench.returncode != 0
            assert reason in bench.stderr


def test_bench_sweeps_plans(ours: Build, scored: Path) -> None:
    sets = ("none", "auto:25%", "@fast", "auto:3")
    args = [arg for text in sets for arg in ("--skip-layers", text)]
    done = ours.run("llama-bench", "-m", scored, *("-p", 2, "-n", 0, "-r", 1, "-t", 1), *args, "-o", "json")
    found = json.loads(done.stdout)
    assert [run["skip_layers"] for run in found] == list(sets)
    block = {il: sum(t.size for t in tensors(scored) if t.block == il) for il in range(4)}
    for run, out in zip(found, ([], [2], [1, 3], [0, 1, 2]), strict=True):
        assert run["model_size"] == found[0]["model_size"] - sum(block[il] for il in out)


def test_the_server_shows_the_blocks(ours: Build, scored: Path) -> None:
    draft = ("-md", str(scored), "-fit", "off", "--skip-layers-draft", "auto:1")
    props, log = server_facts(ours, scored, "--skip-layers", "@fast", *draft)
    assert props["skip"]["layers"] == "1,3"
    assert props["skip"]["scale"] == "1:0.5"
    found = [line.partition("skip: ")[2] for line in log.splitlines() if "left out" in line]
    lines = [text for text in found if text.startswith("blocks")]  # others are about tiers
    assert sorted(line.split(",")[0] for line in lines) == ["blocks 1", "blocks 2 left out"]


def test_weights_of_the_first_kept_blocks_stay_on_the_host(ours: Build, scored: Path) -> None:
    """-ncffn counts the blocks that the plan keeps: 0 and 3."""
    with rpc_device(ours.tool("ggml-rpc-server")) as device:
        args = ("--rpc", device.endpoint, "-ngl", 99, "-fit", "off", "-ncffn", 2)
        done = complete(ours, scored, "--skip-layers", "auto:2", *args)
        assert done.returncode == 0, done.stderr[-3000:]
        ffn = {f"blk.{il}.ffn_{part}.weight" for il in (0, 3) for part in ("up", "down", "gate")}
        assert set(device.weights()) == {t.name for t in tensors(scored) if t.block in (None, 0, 3)} - ffn


def test_quantize_keeps_what_is_known_and_drops_what_was_asked(
    ours: Build, make: Callable[..., Any], scored: Path, tmp_path: Path
) -> None:
    quantized = tmp_path / "q8.gguf"
    done = ours.run("llama-quantize", "--override-kv", "skip.plan=str:auto:1", scored, quantized, "Q8_0", "1")
    assert done.returncode == 0, done.stderr
    assert len(tensors(quantized)) == len(tensors(scored))
    llm = make(quantized, skip_layers="@fast")
    assert llm.skip_layers == (1, 3)
    notes = {key for key in llm.metadata if key.startswith("skip.")}
    assert notes == {key for key in make(scored).metadata if key.startswith("skip.")}
    assert "skip.score.version" in notes and "skip.plan" not in notes
    log = log_of(make, quantized, "auto:50%")
    assert "blocks 1-2 left out" in log
    assert log.count(OTHER_WEIGHTS) == 1
