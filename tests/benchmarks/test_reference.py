"""The benchmarks' numpy models and search, which judge our choice of blocks, against the library."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny import HEAD, N_HEAD, N_KV, blocks, random_model

from comparison.stock_build import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import reference
import sleb

N_BLOCKS, N_CTX = 4, 32


@pytest.fixture(scope="module")
def write(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A small model of unquantised weights, so that the library rounds nothing to 8 bits."""

    @cache
    def written(arch: str) -> Path:
        shapes = blocks(N_BLOCKS, post_norm="ffn_norm")
        shapes = {
            name: shape for name, shape in shapes.items() if "_q_norm" not in name and "_k_norm" not in name
        }
        if arch == "qwen2":
            wide = {"q": N_HEAD * HEAD, "k": N_KV * HEAD, "v": N_KV * HEAD}
            shapes |= {f"blk.{il}.attn_{x}.bias": (n,) for il in range(N_BLOCKS) for x, n in wide.items()}
        return random_model(tmp_path_factory.mktemp(arch) / "plain.gguf", smollm2, arch, N_BLOCKS, shapes, {})

    return written


@pytest.fixture(scope="module")
def plain(write: Callable[[str], Path]) -> Path:
    return write("llama")


@pytest.fixture(scope="module")
def model(plain: Path) -> reference.Model:
    return reference.load(plain)


def as_library(make: Any, model: Path, **options: Any) -> Any:
    return make(model, n_ctx=N_CTX * 8, type_k=0, type_v=0, **options)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_logits_equal_the_library_s(
    make: Any, write: Callable[[str], Path], tokens: list[int], arch: str
) -> None:
    model = reference.load(write(arch))
    length = reference.CHUNK + 11  # so that a second chunk of queries looks back at the first
    text = (tokens * 8)[:length]
    for left_out in [], [0], [1, 3]:
        found = model.logits(model.run([text, text[::-1]], left_out))
        llm = as_library(make, write(arch), skip_layers=left_out)
        for row, window in zip(found, (text, text[::-1]), strict=True):
            expected = llm.logits(window)
            # float32 on both sides, in another order, with a table for SiLU's exp on ours
            assert np.abs(row - expected).max() < 2e-3 * expected.std()


def test_smollm2_s_logits_agree_up_to_its_quantised_activations(
    make: Any, smollm2: Path, tokens: list[int]
) -> None:
    model, llm = reference.load(smollm2), make()
    window = tokens[:48]
    found, expected = model.logits(model.run([window]))[0], llm.logits(window)
    assert np.sqrt(((found - expected) ** 2).mean()) < 0.06 * expected.std()
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9


def surprisals(model: reference.Model, windows: np.ndarray, left_out: list[int]) -> np.ndarray:
    """-log p of what the search scores, from whole logits."""
    x = model.logits(model.run(windows, left_out)).astype(np.float64)
    logp = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    first = windows.shape[1] // 2
    targets = windows[:, first + 1 :]
    return -np.take_along_axis(logp[:, first:-1], targets[..., None], axis=-1)


def test_the_search_is_greedy_and_exhaustive(model: reference.Model, tokens: list[int]) -> None:
    windows = np.array((tokens * 8)[: 3 * N_CTX]).reshape(3, N_CTX)  # two groups
    result: dict[str, Any] = {"path": [], "trying": {}}
    sleb.search(model, windows, 2, result, lambda: None, 2)
    left_out: list[int] = []
    for step in result["path"]:
        tried = {
            il: float(np.exp(surprisals(model, windows, [*left_out, il]).mean()))
            for il in range(N_BLOCKS)
            if il not in left_out
        }
        if not left_out:
            assert result["one_shot"] == pytest.approx(list(tried.values()), rel=1e-4)
        left_out.append(min(tried, key=tried.__getitem__))
        assert step["block"] == left_out[-1]
        assert step["perplexity"] == pytest.approx(tried[left_out[-1]], rel=1e-4)
    assert result["full"]["perplexity"] == pytest.approx(
        np.exp(surprisals(model, windows, []).mean()), rel=1e-4
    )
    assert result["full"]["n_scored"] == 3 * (N_CTX // 2 - 1)


def test_influence_and_angles_from_the_library_s_hidden_states(
    make: Any, plain: Path, model: reference.Model, tokens: list[int]
) -> None:
    windows = np.array((tokens * 8)[: 2 * N_CTX]).reshape(2, N_CTX)
    state = sleb.Search(model, windows, [], 1)
    found = sleb.distances(state.streams, N_CTX)
    llm = as_library(make, plain, hidden_states=True)
    hidden = [llm.hidden_states(window.tolist()) for window in windows]
    streams = np.stack([np.concatenate([h.inputs, h.outputs[-1:]]) for h in hidden], axis=1).astype(
        np.float64
    )

    def cosine(i: int, j: int) -> np.ndarray:
        a, b = streams[i], streams[j]
        return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))

    for i in range(N_BLOCKS):
        assert found["influence"][i] == pytest.approx(1 - cosine(i, i + 1).mean(), abs=1e-5)
        for n in range(1, N_BLOCKS - i + 1):
            angle = np.arccos(cosine(i, i + n)) / np.pi
            assert found["angular"][i][n - 1] == pytest.approx(angle.mean(), abs=1e-5)
            assert found["angular_last"][i][n - 1] == pytest.approx(angle[:, -1].mean(), abs=1e-5)


def test_a_killed_search_goes_on_to_the_same_end(model: reference.Model, tokens: list[int]) -> None:
    windows = np.array(tokens[:N_CTX])[None]
    n_saved = 0
    whole: dict[str, Any] = {"path": [], "trying": {}}
    sleb.search(model, windows, 2, whole, lambda: None, 2)

    def save() -> None:
        nonlocal n_saved, kept
        n_saved += 1
        kept = json.dumps(part)
        if n_saved == 7:  # the full model, four blocks, the first step, one candidate of the second
            raise KeyboardInterrupt

    part: dict[str, Any] = {"path": [], "trying": {}}
    kept = ""
    with pytest.raises(KeyboardInterrupt):
        sleb.search(model, windows, 2, part, save, 2)
    again = json.loads(kept)
    assert len(again["path"]) == 1 and len(again["trying"]) == 1
    sleb.search(model, windows, 2, again, lambda: None, 2)
    assert again == whole


def test_the_command_continues_its_file_and_no_other(plain: Path, tokens: list[int], tmp_path: Path) -> None:
    ids, out = tmp_path / "ids.json", tmp_path / "out.json"
    ids.write_text(json.dumps(tokens[:N_CTX]))
    args = [str(plain), "--ids", str(ids), "--ctx", str(N_CTX), "--blocks", "1", "-o", str(out)]
    assert sleb.main(args) == 0
    found = json.loads(out.read_text())
    assert found["model"]["name"] == plain.name and found["text"]["n_tokens"] == N_CTX
    assert len(found["path"]) == 1 and len(found["one_shot"]) == N_BLOCKS
    ids.write_text(json.dumps(tokens[1 : N_CTX + 1]))
    with pytest.raises(SystemExit, match="of another model or text"):
        sleb.main(args)
    assert json.loads(out.read_text()) == found
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ids.json", "out.json"]


def test_what_the_reference_does_not_implement_is_refused(tiny: Path) -> None:
    with pytest.raises(ValueError, match="architecture qwen3 is not"):
        reference.load(tiny)
