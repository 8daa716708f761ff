"""llama-server with blocks left out says what the unpatched one says of the zeroed file."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny import projector, reranker, with_mtp_head

from comparison.builds import Build
from comparison.oracle import expand, greedy, zeroed_copy
from comparison.server import Server, server

OUT = "13,20"
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "Water boils when",
    "My favourite colour is blue, because",
]
LONG = "One, two, three, four, five, six, seven,"


def texts(answers: list[dict[str, Any]]) -> list[str]:
    return [answer["content"] for answer in answers]


def drafts(answer: dict[str, Any]) -> tuple[int, int]:
    """How many tokens were drafted, and how many of them were right."""
    return answer["timings"]["draft_n"], answer["timings"]["draft_n_accepted"]


def at_once(running: Server, n: int) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return list(pool.map(lambda prompt: running.complete(prompt, n), PROMPTS))


@pytest.fixture
def reference(stock: Build, ours: Build) -> Build:
    """What serves the zeroed file: the unpatched server where it was built.

    That build would take half as long again, so it is else ours with nothing left out, whose library is the
    unpatched one bit for bit (test_identity.py).
    """
    return stock if (stock.bin / "llama-server").is_file() else ours


def test_parallel_requests(stock: Build, ours: Build, smollm2: Path, zeroed: Any) -> None:
    file = zeroed(expand(OUT))
    expected = [stock.worker.call(greedy, file, prompt, 24, {}, "on") for prompt in PROMPTS]
    with server(ours, smollm2, "-np", 4, "-c", 512, "--skip-layers", OUT) as found:
        assert [found.complete(prompt, 24)["tokens"] for prompt in PROMPTS] == expected
        assert [answer["tokens"] for answer in at_once(found, 24)] == expected
        assert [slot["id"] for slot in found.ask("/slots")] == [0, 1, 2, 3]


def test_a_context_shift(reference: Build, ours: Build, smollm2: Path, zeroed: Any) -> None:
    args = ("-c", 256, "--context-shift")
    with server(reference, zeroed(expand(OUT)), *args) as plain:
        expected = plain.complete(LONG, 250)
    assert expected["truncated"]
    with server(ours, smollm2, *args, "--skip-layers", OUT) as found:
        assert found.complete(LONG, 250)["content"] == expected["content"]


def test_slots_are_saved_and_restored_under_their_set_only(
    ours: Build, smollm2: Path, tmp_path: Path
) -> None:
    save = ("--slot-save-path", str(tmp_path) + "/")
    name = {"filename": "slot.bin"}
    with server(ours, smollm2, *save, "--skip-layers", OUT) as source:
        expected = source.complete(PROMPTS[1])["content"]
        saved = source.ask("/slots/0?action=save", name)
    assert saved["n_saved"] > 20
    with server(ours, smollm2, *save, "--skip-layers", OUT) as same:
        restored = same.ask("/slots/0?action=restore", name)
        assert restored["n_restored"] == saved["n_saved"]
        again = same.complete(PROMPTS[1])
        assert again["content"] == expected
        assert again["timings"]["cache_n"] > 5
    for args, reason in [
        (("--skip-layers", "13"), "the state was saved with 'skip 13,20', this context has 'skip 13'"),
        (("--skip-layers", OUT, "--skip-scale", "20:0.5"), "this context has 'skip 13,20, scale 20:0.5'"),
        ((), "the state was saved with 'skip 13,20', this context has no block left out"),
    ]:
        with server(ours, smollm2, *save, *args) as other:
            refused = other.ask("/slots/0?action=restore", name)
            assert refused["error"]["code"] == 400, refused
            assert other.logs(reason), other.log[-3000:]
            # the slot goes on as if nothing had been tried
            assert other.complete(PROMPTS[1])["timings"]["cache_n"] == 0


def test_a_shallower_draft_of_itself(
    stock: Build, reference: Build, ours: Build, smollm2: Path, zeroed: Any
) -> None:
    """The text is the one without a draft; what the draft proposes is what the zeroed file would."""
    draft = ("--spec-type", "draft-simple", "--spec-draft-n-max", 4, "--spec-draft-p-min", 0)
    with server(reference, smollm2, *draft, "-md", zeroed(expand("10,19"))) as zeroed_draft:
        drafted = [zeroed_draft.complete(prompt, 24) for prompt in PROMPTS[:2]]
    with server(ours, smollm2, *draft, "-md", smollm2, "--skip-layers-draft", "10,19") as found:
        answers = [found.complete(prompt, 24) for prompt in PROMPTS[:2]]
    expected = [stock.worker.call(greedy, smollm2, prompt, 24, {}, "on") for prompt in PROMPTS[:2]]
    assert [answer["tokens"] for answer in answers] == expected
    assert [drafts(a) for a in answers] == [drafts(a) for a in drafted]
    assert all(0 < right < n for n, right in map(drafts, answers))


@pytest.fixture(scope="module")
def mtp(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_mtp_head(tmp_path_factory.mktemp("mtp") / "mtp.gguf", smollm2)


def test_a_multi_token_prediction_head(reference: Build, ours: Build, mtp: Path, tmp_path: Path) -> None:
    """The head is the block behind the trunk, keeps its number, and reads what the last kept block wrote."""
    spec = "0,2,5"  # of six blocks
    zeroed = zeroed_copy(mtp, tmp_path / "zeroed.gguf", expand(spec))
    draft = ("--spec-type", "draft-mtp", "--spec-draft-n-max", 3, "--spec-draft-p-min", 0)
    with server(ours, mtp, "--skip-layers", spec) as plain:
        expected = [plain.complete(prompt, 24) for prompt in PROMPTS]
    with server(reference, zeroed, *draft) as zeroed_trunk:
        drafted = [zeroed_trunk.complete(prompt, 24) for prompt in PROMPTS]
    with server(ours, mtp, *draft, "--skip-layers", spec) as found:
        answers = [found.complete(prompt, 24) for prompt in PROMPTS]
    assert texts(answers) == texts(expected)
    assert [drafts(a) for a in answers] == [drafts(a) for a in drafted]
    assert 0 < sum(right for _, right in map(drafts, answers)) < sum(n for n, _ in map(drafts, answers))


def test_the_head_itself_cannot_be_left_out(ours: Build, mtp: Path) -> None:
    done = ours.run("llama-completion", "-m", mtp, "-p", "Once", "-n", 1, "--skip-layers", "6")
    assert done.returncode > 0
    assert "error: --skip-layers: block 6 is out of range, the model has blocks 0-5" in done.stderr


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings(reference: Build, ours: Build, smollm2: Path, zeroed: Any, pooling: str) -> None:
    args = ("--embeddings", "--pooling", pooling)
    body = {"input": PROMPTS, "model": "any"}
    with server(reference, zeroed(expand(OUT)), *args) as plain:
        expected = [d["embedding"] for d in plain.ask("/v1/embeddings", body)["data"]]
    with server(ours, smollm2, *args, "--skip-layers", OUT) as found:
        assert [d["embedding"] for d in found.ask("/v1/embeddings", body)["data"]] == expected
    assert len(expected) == len(PROMPTS) and len(expected[0]) == 576
    assert expected[0] != expected[1]


def test_reranking(reference: Build, ours: Build, smollm2: Path, tmp_path: Path) -> None:
    model = reranker(tmp_path / "reranker.gguf", smollm2)
    body = {"query": "What boils?", "documents": PROMPTS}

    def scores(running: Server) -> dict[int, float]:
        return {r["index"]: r["relevance_score"] for r in running.ask("/v1/rerank", body)["results"]}

    with server(reference, zeroed_copy(model, tmp_path / "zeroed.gguf", [1, 5]), "--reranking") as plain:
        expected = scores(plain)
    with server(ours, model, "--reranking", "--skip-layers", "1,5") as found:
        assert scores(found) == expected
    with server(ours, model, "--reranking") as whole:
        assert scores(whole) != expected
    assert len(set(expected.values())) == len(PROMPTS)


def picture(seed: int) -> str:
    """An image of 28 x 28 as a data URL, in the plain portable pixmap format."""
    pixels = np.random.default_rng(seed).integers(0, 256, 28 * 28 * 3, dtype=np.uint8)
    data = base64.b64encode(b"P6 28 28 255\n" + pixels.tobytes()).decode()
    return f"data:image/x-portable-pixmap;base64,{data}"


def test_a_multimodal_projector(
    reference: Build, ours: Build, smollm2: Path, tmp_path: Path, zeroed: Any
) -> None:
    mmproj = ("--mmproj", projector(tmp_path / "mmproj.gguf", 576))

    def describe(running: Server, seed: int) -> str:
        content = [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": picture(seed)}},
        ]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 24, "temperature": 0}
        answer = running.ask("/v1/chat/completions", body)
        assert "choices" in answer, answer
        text: str = answer["choices"][0]["message"]["content"]
        return text

    with server(reference, zeroed(expand(OUT)), *mmproj) as plain:
        expected = [describe(plain, seed) for seed in (1, 2)]
    with server(ours, smollm2, *mmproj, "--skip-layers", OUT) as found:
        assert [describe(found, seed) for seed in (1, 2)] == expected
    assert expected[0] != expected[1]
