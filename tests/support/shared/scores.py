"""Shared by tests of several folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_skip import Llama
from llama_skip.score import score as scoring
from llama_skip.score.file import Score
from support.tiny import blocks, random_model

from comparison.oracle import WRITERS

N_CTX, N_WINDOWS, N_BLOCKS = 64, 6, 6
OPTIONS = {"n_threads": 1, "n_threads_batch": 1, "n_batch": N_CTX, "flash_attn": False}


def six_blocks(path: Path, vocab: Path, factors: dict[str, float]) -> Path:
    """Write six blocks of which each changes the stream more than the one before, in another order.

    `factors` are of tensors by name, beside that.
    """
    strength = {0: 0.5, 1: 0.02, 2: 0.2, 3: 0.05, 4: 0.35, 5: 0.1}

    def change(name: str, data: np.ndarray) -> np.ndarray:
        own = strength[int(name.split(".")[1])] if WRITERS.fullmatch(name) else 1
        return data * own * factors.get(name, 1)

    return random_model(path, vocab, "qwen3", N_BLOCKS, blocks(N_BLOCKS, post_norm="ffn_norm"), {}, change)


@pytest.fixture(scope="module")
def model(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return six_blocks(tmp_path_factory.mktemp("score") / "six.gguf", smollm2, {})


@pytest.fixture(scope="module")
def text(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the model itself says with whole words: of another text it knows nothing, being random."""
    rng = np.random.default_rng(1)
    with Llama(model, n_ctx=N_CTX, **OPTIONS, verbose=False) as llm:
        words = [t for t in range(2000, 20000) if re.fullmatch(b" [a-z]+", llm.detokenize([t]))]
        said = words[:1]
        while len(said) < N_CTX * (N_WINDOWS + 1):
            recent = said[-N_CTX // 2 :]
            logits = llm.logits(recent, first=len(recent) - 1)[0, words].astype(np.float64)
            p = np.exp(logits - logits.max())
            said.append(int(rng.choice(words, p=p / p.sum())))
        written = llm.detokenize(said)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(written)
    return path


def scored(model: Path, text: Path | None, **kwargs: Any) -> Score:
    settings: dict[str, Any] = {"n_tokens": N_CTX * N_WINDOWS, "n_ctx": N_CTX, "n_path": 3}
    return scoring.score_model(model, text=text, **{**OPTIONS, **settings, **kwargs})


class Stop:
    """Ctrl-C after so many windows."""

    def __init__(self, n_left: int) -> None:
        self.n_left = n_left

    def __call__(self) -> None:
        self.n_left -= 1
        if self.n_left == 0:
            raise KeyboardInterrupt
