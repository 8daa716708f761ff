"""A request to llama-server at a depth of its own says what a server, or a context, of that depth says.

With flash attention on the CPU a token's logits do not depend on what it is decoded with, in batches as small
as these: equal is bit for bit.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_skip import Plan, annotate_model, identify
from llama_skip.plan.found import Found
from support.adapters import lora_file, names_of
from support.tiny import mamba, sliding_window

from comparison.builds import Build
from comparison.server import Server, server

FAST, FASTER, HALVES, FFN = "13,20", "10-14", "4:attn,9:ffn", "6:ffn,17:ffn"
TIERS = {"fast": FAST, "faster": FASTER, "halves": HALVES, "ffn": FFN}
PROMPTS = [
    "The capital of France is Paris, and the capital of Italy is",
    "Once upon a time, in a small village by the sea,",
    "Water boils when",
    "My favourite colour is blue, because",
]
N = 16


def flags(tiers: dict[str, str]) -> list[str]:
    return list(itertools.chain.from_iterable(("--skip-tier", f"{k}={v}") for k, v in tiers.items()))


def ask(running: Server, prompt: Any, n: int = N, **more: Any) -> dict[str, Any]:
    """The answer to a greedy completion."""
    body = {
        "prompt": prompt,
        "n_predict": n,
        "temperature": 0,
        "ignore_eos": True,
        "return_tokens": True,
        "n_probs": 2,
    }
    answer: dict[str, Any] = running.ask("/completion", body | more)
    assert "content" in answer, answer
    return answer


def said(answer: dict[str, Any]) -> Any:
    return answer["tokens"], answer["completion_probabilities"]


def cached(answer: dict[str, Any]) -> int:
    n: int = answer["timings"]["cache_n"]
    return n


def error(answer: Any) -> str:
    assert answer["error"]["code"] == 400, answer
    return str(answer["error"]["message"])


def masked_tail(llm: Any, prompt: list[int], spec: str, n: int = N) -> list[int]:
    """What follows a prompt at full depth, each further token decoded under a mask; no token ends it."""
    goes_on = [token for token in range(llm.n_vocab()) if not llm._m.is_eog(token)]

    def best() -> int:
        return goes_on[int(np.argmax(llm.scores[-1][goes_on]))]

    llm.reset()
    llm.set_mask("none")
    llm.eval(prompt)
    llm.set_mask(spec)
    tokens = [best()]
    while len(tokens) < n:
        llm.eval(tokens[-1:])
        tokens.append(best())
    return tokens


@pytest.fixture(scope="module")
def models(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Caches of three kinds: all tokens, a window, and none but a state."""
    folder = tmp_path_factory.mktemp("tiers")
    return {
        "full": smollm2,
        "window": sliding_window(folder / "window.gguf", smollm2),
        "state": mamba(folder / "state.gguf", smollm2),
    }


@pytest.mark.parametrize("kind", ["full", "window", "state"])
def test_a_tier_is_a_server_of_its_set(ours: Build, models: dict[str, Path], kind: str) -> None:
    tiers = TIERS if kind == "full" else {"fast": "1", "faster": "0,2"}
    expected = {}
    for name, spec in {"none": "none", **tiers}.items():
        with server(ours, models[kind], *([] if spec == "none" else ["--skip-layers", spec])) as own:
            expected[name] = [said(ask(own, prompt)) for prompt in PROMPTS]
    assert len({json.dumps(answers) for answers in expected.values()}) == len(expected)
    # the cells of a window that begins in the middle of its ring are added up in another order
    reuse = {"cache_prompt": kind != "window"}
    with server(ours, models[kind], *flags(tiers)) as found:
        for _ in range(2):  # the second time from the prompt cache
            for name, answers in expected.items():
                for prompt, answer in zip(PROMPTS, answers, strict=True):
                    asked = ask(found, prompt, skip_layers=name, skip_prompt=True, **reuse)
                    assert said(asked) == answer, (name, prompt)
                    assert asked["timings"].get("skip", "none") == name


@pytest.mark.parametrize("kind", ["full", "window", "state"])
def test_a_prompt_at_full_depth(
    ours: Build, make: Callable[..., Any], models: dict[str, Path], kind: str
) -> None:
    tiers = TIERS if kind == "full" else {"fast": "1", "faster": "0,2"}
    llm = make(models[kind], n_ctx=512, flash_attn=True, logits_all=True)
    prompts = [llm.tokenize(prompt.encode()) for prompt in PROMPTS]
    names = {"none": "none", **tiers}
    expected = {name: [masked_tail(llm, prompt, spec) for prompt in prompts] for name, spec in names.items()}
    with server(ours, models[kind], *flags(tiers)) as one:
        for name, answers in expected.items():
            assert [ask(one, prompt, skip_layers=name)["tokens"] for prompt in prompts] == answers, name
        # the prompt was processed once for all depths, or from its last checkpoint on
        n_cached = cached(ask(one, prompts[-1], skip_layers="fast"))
        assert n_cached == len(prompts[-1]) - 1 if kind == "full" else 0 < n_cached < len(prompts[-1])
    jobs = [(name, i) for name in names for i in range(len(prompts))] * 2
    random.Random(5).shuffle(jobs)
    with (
        server(ours, models[kind], "-np", 4, "-c", 2048, *flags(tiers)) as many,
        ThreadPoolExecutor(8) as pool,
    ):
        found = list(pool.map(lambda job: ask(many, prompts[job[1]], skip_layers=job[0])["tokens"], jobs))
    assert found == [expected[name][i] for name, i in jobs]


def test_a_conversation_goes_on_at_another_depth(ours: Build, smollm2: Path) -> None:
    """What blocks have no data for is decoded anew; under a mask of feed-forwards nothing has to be."""
    with server(ours, smollm2, *flags(TIERS)) as found:
        first = ask(found, PROMPTS[0])
        n_prompt = first["tokens_evaluated"]
        plain = {}
        for name in TIERS:
            said_before = PROMPTS[0] + ask(found, PROMPTS[0], skip_layers=name)["content"]
            further = ask(found, said_before + " And then")
            more = cached(further) - n_prompt
            assert more > N - 4 if name == "ffn" else more <= 0, (name, more)
            plain[name] = (said_before + " And then", said(further))
    with server(ours, smollm2) as alone:
        for name, (prompt, answer) in plain.items():
            assert (said(ask(alone, prompt)) == answer) == (name != "ffn"), name


def test_completions_of_one_prompt(ours: Build, smollm2: Path) -> None:
    body = {"prompt": PROMPTS[1], "max_tokens": N, "temperature": 0, "skip_layers": "fast", "n": 3}
    with server(ours, smollm2, "-np", 4, "-c", 2048, *flags(TIERS)) as found:
        alone = ask(found, PROMPTS[1], skip_layers="fast")["content"]
        choices = found.ask("/v1/completions", body)["choices"]
    assert [choice["text"] for choice in choices] == [alone] * 3


def test_a_context_shift(ours: Build, smollm2: Path) -> None:
    args = ("-c", 256, "--context-shift")
    with server(ours, smollm2, *args, "--skip-layers", FAST) as own:
        expected = ask(own, PROMPTS[1], 250)
    assert expected["truncated"]
    with server(ours, smollm2, *args, *flags(TIERS)) as found:
        plain = said(ask(found, PROMPTS[1]))
        assert said(ask(found, PROMPTS[1], 250, skip_layers="fast", skip_prompt=True)) == said(expected)
        assert ask(found, PROMPTS[1], 250, skip_layers="fast")["truncated"]
        assert said(ask(found, PROMPTS[1])) == plain


def test_a_draft_and_sleep_change_nothing(ours: Build, smollm2: Path) -> None:
    draft = ("--spec-type", "draft-simple", "--spec-draft-n-max", 4, "-md", smollm2)
    with server(ours, smollm2, *flags(TIERS)) as plain:
        expected = {name: ask(plain, PROMPTS[1], skip_layers=name)["tokens"] for name in ["none", *TIERS]}
    with server(
        ours, smollm2, *flags(TIERS), *draft, "-np", 2, "-c", 1024, "--sleep-idle-seconds", 2
    ) as found:
        for _ in range(2):
            with ThreadPoolExecutor(4) as pool:
                texts = list(
                    pool.map(lambda name: ask(found, PROMPTS[1], skip_layers=name)["tokens"], expected)
                )
            assert texts == list(expected.values())
            time.sleep(4)
        assert found.logs("entering sleeping state")


def test_adapters_of_requests(ours: Build, smollm2: Path, tmp_path: Path) -> None:
    adapter = lora_file(smollm2, tmp_path / "adapter.gguf", names_of(range(30), ["attn_q", "ffn_down"]))
    lora = {"lora": [{"id": 0, "scale": 1.0}]}
    asked = {"skip_layers": "fast", "skip_prompt": True}
    with server(ours, smollm2, "--lora", adapter, "--skip-layers", FAST) as own:
        expected = said(ask(own, PROMPTS[1], **lora))
    with server(ours, smollm2, "--lora", adapter, *flags(TIERS), "-np", 2, "-c", 1024) as found:
        plain = said(ask(found, PROMPTS[1], skip_layers="fast"))
        assert said(ask(found, PROMPTS[1], **asked, **lora)) == expected
        probed = ask(found, " ".join(PROMPTS), skip_max_kld=100, **lora)
        assert probed["timings"]["skip"] == "faster"
        assert probed["tokens"] == ask(found, " ".join(PROMPTS), skip_layers="faster", **lora)["tokens"]
        assert said(ask(found, PROMPTS[1], skip_layers="fast")) == plain


def test_slot_files_keep_their_depth(ours: Build, smollm2: Path, tmp_path: Path) -> None:
    save = ("--slot-save-path", str(tmp_path) + "/", "--cache-ram", 0)
    asked = {"skip_layers": "fast", "skip_prompt": True}
    with server(ours, smollm2, *save, *flags(TIERS)) as found:
        plain, masked = said(ask(found, PROMPTS[1])), said(ask(found, PROMPTS[1], **asked))
        found.ask("/slots/0?action=save", {"filename": "masked"})
        ask(found, PROMPTS[1], skip_layers="faster")
        found.ask("/slots/0?action=save", {"filename": "plain"})
    with server(ours, smollm2, *save, *flags(TIERS)) as again:
        for name, more, expected in [("masked", asked, masked), ("plain", {}, plain)]:
            for file, n_cached in {"masked": 5, "plain": 5}.items():
                again.ask("/slots/0?action=restore", {"filename": file})
                answer = ask(again, PROMPTS[1], **more)
                assert said(answer) == expected
                assert (cached(answer) > n_cached) == (file == name), (file, name)
    with server(ours, smollm2, *save) as other:
        assert error(other.ask("/slots/0?action=restore", {"filename": "masked"}))
        assert other.ask("/slots/0?action=restore", {"filename": "plain"})["n_restored"] > 5


def test_every_endpoint(ours: Build, tiny: Path) -> None:
    tiers = {"fast": "1", "faster": "1,2"}
    message = [{"role": "user", "content": "Hello"}]
    bodies: dict[str, dict[str, Any]] = {
        "/completion": {"prompt": "Hello", "n_predict": 4},
        "/v1/completions": {"prompt": "Hello", "max_tokens": 4},
        "/v1/chat/completions": {"messages": message, "max_tokens": 4},
        "/v1/responses": {"input": "Hello", "max_output_tokens": 4},
        "/v1/messages": {"messages": message, "max_tokens": 4},
    }
    chatml = ("--chat-template", "chatml")
    with server(ours, tiny, "--metrics", "--slots", *chatml, *flags(tiers)) as found:
        for path, body in bodies.items():
            for more in ({"skip_layers": "faster"}, {"model": "tiny@fast"}):
                answer = found.ask(path, body | more)
                assert "error" not in answer, (path, answer)
                tier = found.ask("/slots")[0]["params"]["skip"]["tier"]
                assert tier == more.get("skip_layers", "fast"), path
            unknown = error(found.ask(path, body | {"skip_layers": "fastest"}))
            assert "fastest" in unknown and "the tiers are: fast, faster" in unknown
        metrics = found.text("/metrics")
        assert f'llamacpp:skip_requests_total{{tier="fast"}} {len(bodies)}' in metrics
        assert "llamacpp:skip_switches_total " in metrics
        assert found.ask("/props")["skip"]["tiers"] == {"fast": "1", "faster": "1-2"}
        names = [model["id"] for model in found.ask("/v1/models")["data"]]
        assert names == [names[0], f"{names[0]}@fast", f"{names[0]}@faster"]


def test_plans_of_the_model_are_tiers(ours: Build, tiny: Path, tmp_path: Path) -> None:
    """Those in its sidecar; one that cannot be a mask is none, and the flag comes first."""
    model = tmp_path / "model.gguf"
    model.symlink_to(tiny)
    about, found = identify(model), Found("greedy")
    layers = {"fast": "1", "deep": "2", "none": "1", "1-2": "0"}
    plans = {name: Plan(about, text, found=found) for name, text in layers.items()}
    annotate_model(model, plans=plans | {"disk": Plan(about, "3", disk_layers="0", found=found)})
    with server(ours, model, "--skip-tier", "deep=3", "--skip-load", "fast:9") as running:
        assert running.ask("/props")["skip"]["tiers"] == {"deep": "3", "fast": "1"}
        assert running.logs("the plan disk is no tier")
        assert running.logs("the plan 1-2 is no tier: its name is a set of blocks")
        assert ask(running, PROMPTS[0], skip_layers="none")["generation_settings"]["skip"]["layers"] == ""
        answer = ask(running, PROMPTS[0], skip_layers="fast", cache_prompt=False)
        assert answer["generation_settings"]["skip"] == {"tier": "fast", "layers": "1", "prompt": False}
        assert ask(running, PROMPTS[0], skip_layers="@deep")["generation_settings"]["skip"]["layers"] == "2"
        assert "the tiers are: deep, fast" in error(
            running.ask("/completion", {"prompt": "x", "skip_layers": "disk"})
        )


def test_what_is_refused(ours: Build, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    refused = {
        "skip_layers": [
            "",
            "nope",
            "0-3",
            "9",
            "@/etc/passwd",
            "@plan.json",
            "@..",
            "@nope",
            "auto:25%",
            3,
            ["1"],
            "1," * 4000,
        ],
        "skip_prompt": ["yes", 1],
        "skip_max_kld": [-1, "little", [1]],
    }
    with server(ours, tiny, *flags({"fast": "1"})) as found:
        expected = said(ask(found, PROMPTS[0], cache_prompt=False))
        for key, values in refused.items():
            for value in values:
                assert error(found.ask("/completion", {"prompt": "Hello", "n_predict": 2, key: value})), (
                    key,
                    value,
                )
        both = {"prompt": "Hello", "skip_max_kld": 1, "skip_prompt": True}
        assert "skip_prompt" in error(found.ask("/completion", both))
        assert said(ask(found, PROMPTS[0], cache_prompt=False)) == expected


def test_random_bodies(ours: Build, tiny: Path) -> None:
    """No crash and no fault of the server's, whatever stands in the fields; masks do not pile up."""
    rng = random.Random(7)
    pool: list[Any] = [
        None,
        True,
        0,
        -1,
        1e9,
        "",
        "none",
        "fast",
        "1",
        "0,2",
        "1:attn",
        "2:ffn",
        "@x",
        "auto:1",
        "0-9",
        [],
        {},
    ]

    def value() -> Any:
        if rng.random() < 0.3:
            return "".join(rng.choices("0123456789-+,:;@.attnf ", k=rng.randrange(12)))
        return rng.choice(pool)

    with server(ours, tiny, "--skip-masks-max", 2, *flags({"fast": "1", "faster": "1,2"})) as found:
        expected = said(ask(found, PROMPTS[0], cache_prompt=False))
        answered = 0
        for _ in range(1000):
            keys = rng.sample(["skip_layers", "skip_prompt", "skip_max_kld", "model"], rng.randrange(1, 4))
            body = {"prompt": "Hello", "n_predict": 2} | {key: value() for key in keys}
            answer = found.ask("/completion", body)
            assert answer.get("error", {"code": 400})["code"] == 400, (body, answer)
            answered += "content" in answer
        assert 100 < answered < 900
        assert said(ask(found, PROMPTS[0], cache_prompt=False)) == expected


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("--skip-tier", "fast"), "expected NAME=SPEC"),
        (("--skip-tier", "fast=nope"), "--skip-tier fast"),
        (("--skip-tier", "fast=0-3"), "every block is left out"),
        (("--skip-tier", "1-2=1"), "the name is a set of blocks"),
        (("--skip-tier", "a=1", "--skip-tier", "a=2"), "given twice"),
        (("--skip-tier", "a=1", "--skip-load", "b:2"), "no tier 'b', there are: a"),
        (("--skip-tier", "a=@a", "--skip-load", "a:2"), "--skip-tier a: "),
        (("--skip-tier", "a=1", "--skip-load", "a:0"), "expected NAME:N"),
        (("--skip-tier", "a=1", "--skip-tier", "b=2", "--skip-load", "a:4,b:2"), "the numbers have to rise"),
        (("--skip-masks-max", 0), "at least 1"),
    ],
)
def test_flags_that_are_refused(ours: Build, tiny: Path, args: tuple[Any, ...], reason: str) -> None:
    done = ours.run("llama-server", "-m", tiny, "--port", 1, *args)
    assert done.returncode != 0
    assert reason in done.stdout + done.stderr


def test_a_prompt_is_measured_whatever_else_is_asked(ours: Build, smollm2: Path) -> None:
    """With chunks of the cache used again, and several completions; not where the back-end samples."""
    args = ("-np", 4, "-c", 4096, "--kv-unified", "--metrics", *flags({"fast": FAST}))
    with server(ours, smollm2, *args) as found:
        tokens = found.ask("/tokenize", {"content": " ".join(PROMPTS * 3)})["tokens"]
        plain = ask(found, tokens, skip_max_kld=100, cache_prompt=False)
        for more in ({}, {"n_cache_reuse": 1}):
            answer = ask(found, tokens, skip_max_kld=100, **more)
            assert answer["tokens"] == plain["tokens"], more
            assert answer["timings"]["skip_kld"] == pytest.approx(plain["timings"]["skip_kld"], rel=1e-3)
        sampled = ask(found, tokens, skip_max_kld=100, backend_sampling=True, n_probs=0)
        assert "skip_kld" not in sampled["timings"]
        answers = found.ask("/completion", {"prompt": tokens, "n_predict": 2, "n": 3, "skip_max_kld": 100})
        assert [answer["timings"]["skip"] for answer in answers] == ["fast"] * 3
        metrics = found.text("/metrics")
        assert "llamacpp:skip_probes_total 4\n" in metrics
        assert plain["timings"]["prompt_n"] == len(tokens)


def test_an_answer_that_fills_the_context_leaves_its_prompt(ours: Build, smollm2: Path) -> None:
    with server(ours, smollm2, "-np", 1, "-c", 256, *flags({"fast": FAST})) as found:
        tokens = found.ask("/tokenize", {"content": " ".join(PROMPTS * 3)})["tokens"]
        full = ask(found, tokens, 512, skip_layers="fast")
        assert full["truncated"] and full["stop_type"] == "limit"
        assert cached(ask(found, tokens, skip_layers="none")) >= len(tokens) - 1


def test_under_load(ours: Build, smollm2: Path) -> None:
    """Requests that say nothing take the tier of the load, and full depth again after it."""
    args = ("-np", 2, "-c", 1024, "--skip-load", "fast:1,faster:5")
    with server(ours, smollm2, *args, *flags(TIERS)) as found, ThreadPoolExecutor(12) as pool:
        plain = ask(found, PROMPTS[0])
        assert "skip" not in plain["timings"]
        kept = pool.submit(ask, found, PROMPTS[0], skip_layers="none")
        waiting = list(pool.map(lambda i: ask(found, PROMPTS[i % 4]), range(11)))
        assert said(kept.result()) == said(plain)
        taken = [answer["timings"].get("skip", "none") for answer in waiting]
        assert {"fast", "faster"} <= set(taken), taken
        assert said(ask(found, PROMPTS[0])) == said(plain)


def test_turns_are_fair(ours: Build, tiny: Path) -> None:
    with (
        server(
            ours, tiny, "-np", 4, "-c", 2048, "--metrics", *flags({"fast": "1", "faster": "1,2"})
        ) as found,
        ThreadPoolExecutor(4) as pool,
    ):
        jobs = ["fast", "fast", "faster", "none"]
        answers = list(pool.map(lambda name: ask(found, PROMPTS[0], 300, skip_layers=name), jobs))
        switches = re.search(r"llamacpp:skip_switches_total (\d+)", found.text("/metrics"))
    assert switches and 100 < int(switches[1]) < 450  # 900 batches of three depths, four in a turn
    times = [answer["timings"]["predicted_ms"] for answer in answers]
    assert min(times) > 0.5 * max(times), times  # nobody waited until another one was done


@pytest.mark.parametrize("kind", ["full", "window", "state"])
def test_as_deep_as_a_request_needs(
    ours: Build, make: Callable[..., Any], models: dict[str, Path], kind: str
) -> None:
    tiers = {"fast": FAST, "faster": "3-24"} if kind == "full" else {"fast": "1", "faster": "0,2"}
    llm = make(models[kind], n_ctx=512, flash_attn=True, logits_all=True)
    prompt = llm.tokenize(" ".join(PROMPTS * 2).encode())
    divergence = {name: measured(llm, prompt, spec) for name, spec in tiers.items()}
    low, high = sorted(divergence.values())
    assert low < 0.9 * high
    with server(ours, models[kind], "-np", 2, "-c", 1024, *flags(tiers)) as found:
        plain = {name: ask(found, prompt, skip_layers=name)["tokens"] for name in ["none", *tiers]}
        for max_kld in [0, (low + high) / 2, 2 * high]:
            fits = [name for name in ["faster", "fast"] if divergence[name] <= max_kld]
            answer = ask(found, prompt, skip_max_kld=max_kld)
            name = answer["timings"]["skip"] or "none"
            assert name == (fits or ["none"])[0]
            assert answer["tokens"] == plain[name]
            if fits:  # 64 tokens and more take another kernel, which rounds in another way
                assert answer["timings"]["skip_kld"] == pytest.approx(divergence[name], rel=0.05)
        only = ask(found, prompt, skip_max_kld=2 * high, skip_layers="fast")
        assert only["timings"]["skip"] == "fast"
        short = ask(found, prompt[:2], skip_max_kld=2 * high)
        assert "skip" not in short["timings"]
        named = ask(found, prompt[:2], skip_max_kld=0, skip_layers="fast")
        assert named["tokens"] == short["tokens"]  # too short to measure: not left out unmeasured
        assert named["generation_settings"]["skip"] == {"tier": "", "layers": "", "prompt": False}


def measured(llm: Any, prompt: list[int], spec: str, n: int = 64) -> float:
    """Mean divergence of a mask on the last tokens of a prompt but one, those before at full depth."""
    first = len(prompt) - 1 - n

    def logs(mask: str) -> np.ndarray:
        llm.reset()
        llm.set_mask("none")
        llm.eval(prompt[:first])
        llm.set_mask(mask)
        llm.eval(prompt[first:-1])
        rows = np.array(llm.scores[first : first + n], dtype=np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))

    full, masked = logs("none"), logs(spec)
    llm.reset()
    llm.set_mask("none")
    return float((np.exp(full) * (full - masked)).sum(axis=1).mean())
