"""llama-server with many models, asleep and awake, with its slots on disk, and with tools."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from llama_skip.files.identity import identify
from llama_skip.heal.heal import heal_plan
from llama_skip.plan.annotate import annotate_model
from llama_skip.plan.file import Plan, is_gguf, write_plan
from support.matrix.arch_files import Base, make, write

from comparison.builds import Build
from comparison.server import Server, server

PROMPT = "Once upon a time, in a small village by the sea,"


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A folder with a model, metadata beside it, and a plan with tensors under the name of a model."""
    models = tmp_path / "models"
    (models / "deep").mkdir(parents=True)
    for path in (models / "small.gguf", models / "deep" / "deep.gguf"):
        path.symlink_to(tiny)
        annotate_model(path, plans={"half": Plan(identify(path), "1-2")})
        assert path.with_name(path.stem + ".skip.gguf").exists()
    text = tmp_path / "text.txt"
    text.write_text("The harbour lay still before the first boats came in. " * 60)
    for path in (models / "healed-Q4_K_M.gguf", models / "deep" / "zz.gguf"):
        heal_plan(tiny, skip_layers="1-2", text=text, n_ctx=64, n_tokens=512, output=path, n_threads=1)
        assert is_gguf(path)
    return models


def names(running: Server) -> list[str]:
    return sorted(model["id"] for model in running.ask("/models")["data"])


def complete(running: Server, model: str, n: int = 12) -> str:
    for _ in range(300):  # a model is loaded when it is first asked
        body = {"model": model, "prompt": PROMPT, "max_tokens": n, "temperature": 0, "ignore_eos": True}
        answer = running.ask("/v1/completions", body)
        if "choices" in answer:
            text: str = answer["choices"][0]["text"]
            return text
        time.sleep(0.1)
    raise AssertionError(f"{answer}\n{running.log[-3000:]}")


def test_what_belongs_to_a_model_is_none(ours: Build, tiny: Path, folder: Path) -> None:
    with server(ours, tiny) as one, server(ours, tiny, "--skip-layers", "1") as pruned:
        plain, expected = (running.complete(PROMPT, 12)["content"] for running in (one, pruned))
    assert plain != expected
    with server(ours, None, "--models-dir", folder) as router:
        assert names(router) == ["deep", "small"]
        assert [complete(router, name) for name in names(router)] == [plain, plain]
    with server(ours, None, "--models-dir", folder, "--skip-layers", "1") as router:
        assert complete(router, "deep") == expected
        assert router.ask("/props?model=deep")["skip"]["layers"] == "1"


def test_tiers_through_a_router(ours: Build, tiny: Path, folder: Path) -> None:
    with server(ours, tiny) as one, server(ours, tiny, "--skip-tier", "fast=1") as two:
        expected = [complete(running, name) for running, name in [(one, "x"), (two, "x@fast")]]
    assert expected[0] != expected[1]
    with server(ours, None, "--models-dir", folder, "--skip-tier", "fast=1") as router:
        assert [complete(router, name) for name in ("deep", "deep@fast")] == expected
        assert "error" in router.ask("/v1/completions", {"model": "nope@fast", "prompt": PROMPT})


def test_a_preset_has_our_flags(ours: Build, folder: Path) -> None:
    model = folder / "small.gguf"
    with (
        server(ours, model, "--skip-layers", "1") as one,
        server(ours, model, "--skip-layers", "@half") as two,
    ):
        expected = [running.complete(PROMPT, 12)["content"] for running in (one, two)]
    preset = folder.parent / "presets.ini"
    preset.write_text(
        f"version = 1\n[one]\nmodel = {model}\nskip-layers = 1\n"
        f"[two]\nmodel = {model}\nskip-layers = @half\n[bad]\nmodel = {model}\nskip-layers = 99\n"
    )
    with server(ours, None, "--models-preset", preset) as router:
        assert names(router) == ["bad", "one", "two"]
        assert [complete(router, name) for name in ("one", "two", "one")] == [*expected, expected[0]]
        refused = router.ask("/v1/completions", {"model": "bad", "prompt": PROMPT})
        assert "error" in refused
        assert router.logs("block 99 is out of range")
        assert complete(router, "two") == expected[1]


def test_companions_in_the_hubs_cache(ours: Build, folder: Path, tmp_path: Path) -> None:
    commit = "0" * 40
    repo = tmp_path / "hub" / "models--someone--small"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (snapshot / "small-Q4_K_M.gguf").symlink_to((folder / "small.gguf").resolve())
    for name in ("A-small-Q4_K_M.skip.gguf", "A-small-Q4_K_M.heal.gguf", "A-healed-Q4_K_M.gguf"):
        (snapshot / name).symlink_to(folder / "healed-Q4_K_M.gguf")
    words = ["-hf", "someone/small:Q4_K_M", "--offline", "-no-cnv", "--no-warmup", "-n", "4", "-p", "The"]
    for args in ((), ("--skip-layers", "1")):
        done = ours.run("llama-completion", *words, *args, env={"HF_HUB_CACHE": str(tmp_path / "hub")})
        assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    "args",
    [
        ("--skip-layers", "13,20"),
        ("--skip-layers", "@{plan}"),
        ("--spec-type", "draft-simple", "-md", "{model}", "--skip-layers-draft", "10,19"),
    ],
    ids=["set", "plan", "draft"],
)
def test_asleep_and_awake(ours: Build, smollm2: Path, tmp_path: Path, args: tuple[str, ...]) -> None:
    plan = tmp_path / "plan.json"
    write_plan(plan, Plan(identify(smollm2), "13,20", "13:0.9"))
    words = [word.format(plan=plan, model=smollm2) for word in args]
    with server(ours, smollm2, "--sleep-idle-seconds", 1, *words) as running:
        expected = running.complete(PROMPT)
        skip = running.ask("/props")["skip"]
        for _ in range(2):
            for _ in range(200):
                if running.ask("/props")["is_sleeping"]:
                    break
                time.sleep(0.1)
            props = running.ask("/props")
            assert props["is_sleeping"] and props["skip"] == skip
            assert running.complete(PROMPT)["tokens"] == expected["tokens"]


@pytest.mark.parametrize("name", ["gemma3-dense", "falcon-h1-dense", "mamba-dense"])
def test_slots_of_windows_and_recurrent_states(
    stock: Build, ours: Build, bases: dict[str, Base], tmp_path: Path, name: str
) -> None:
    model = make(stock, tmp_path, bases, name)
    path = write(tmp_path / "model.gguf", model.arch, model.metadata, model.tensors)
    prompt = [3 + i % 50 for i in range(60)]
    save = {"filename": "slot.bin"}

    def ask(running: Server, tokens: list[int]) -> dict[str, Any]:
        body = {"prompt": tokens, "n_predict": 8, "temperature": 0, "ignore_eos": True, "return_tokens": True}
        answer: dict[str, Any] = running.ask("/completion", body)
        assert "tokens" in answer, answer
        return answer

    args = ("--slot-save-path", f"{tmp_path}/", "--skip-layers", "1")
    with server(ours, path, *args) as running:
        first = ask(running, prompt)
        assert "error" not in running.ask("/slots/0?action=save", save)
        longer = [*prompt, *first["tokens"][:-1], 9]
        expected = ask(running, longer)["tokens"]
    with server(ours, path, *args) as running:
        assert "error" not in running.ask("/slots/0?action=restore", save)
        assert ask(running, longer)["tokens"] == expected


ODD = [
    {},
    {"type": "object"},
    {"type": "object", "properties": {}, "additionalProperties": False},
    {"type": "object", "properties": {"x": {"anyOf": [{"type": "null"}, {"type": "string"}]}}},
    {"type": "object", "properties": {"x": {"enum": [1, "a", None]}}, "required": ["x"]},
    {"type": "object", "properties": {"x": {"type": ["string", "null"], "pattern": "^a+$"}}},
    {"type": "object", "properties": {"x": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "integer"}}},
    {"type": "object", "properties": {'a"b': {"const": "\n"}}, "required": ['a"b']},
    {"type": "nothing"},
    {"properties": {"x": {"$ref": "#/absent"}}},
]


def test_tools_with_odd_schemas(ours: Build, smollm2: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with server(ours, smollm2, "--jinja", "--chat-template", template, "--skip-layers", "13,20") as running:
        for parameters in ODD:
            for choice in ("auto", "required"):
                tool = {"type": "function", "function": {"name": "get", "parameters": parameters}}
                body = {"messages": [{"role": "user", "content": "Hi"}], "tools": [tool], "max_tokens": 24}
                answer = running.ask(
                    "/v1/chat/completions", {**body, "tool_choice": choice, "temperature": 0}
                )
                assert "choices" in answer or answer["error"]["code"] in (400, 500), answer
        assert running.complete(PROMPT)["content"]
