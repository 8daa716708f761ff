"""Shared by tests of several folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import accumulate
from pathlib import Path

import pytest
from llama_skip import Llama
from llama_skip.cli import main
from llama_skip.files.identity import Identity, TextInfo, block_bytes, identify
from llama_skip.score.file import Score, Step, write_score
from support.rpc import Proxy, rpc_device
from support.shared.prose import PROSE
from support.tiny import blocks, random_model

from comparison.builds import Build

TEXT = TextInfo("file", "text.txt", "", 1024, 512, 2, 510)
ONE = {"n_threads": 1, "n_threads_batch": 1}
ORDER = [5, 2, 4, 1]
N_CTX = 256


def score_of(model: Identity, order: list[int], klds: list[float], sizes: list[int] | None = None) -> Score:
    """A score whose path costs `klds`; perplexity is 10 and 1 more for each tenth of a nat."""
    freed = accumulate((sizes or [1_000_000] * model.n_layer)[block] for block in order)
    path = [
        Step(block, 10 + 10 * kld, 0.1, kld, 0.01, 0.9, 510, n)
        for block, kld, n in zip(order, klds, freed, strict=True)
    ]
    return Score(model, TEXT, {}, True, 10.0, 0.1, path=path)


def planning_blocks(layers: str) -> list[int]:
    spans = [item.split("-") for item in layers.split(",") if item]
    return [block for span in spans for block in range(int(span[0]), int(span[-1]) + 1)]


@pytest.fixture(scope="module")
def six(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("six") / "six.gguf"
    return random_model(path, smollm2, "qwen3", 6, blocks(6, post_norm="ffn_norm"), {})


@pytest.fixture(scope="module")
def score(six: Path) -> Score:
    return score_of(identify(six), ORDER, [0.1, 0.2, 0.3, 0.4], block_bytes(six))


@pytest.fixture(scope="module")
def files(six: Path, score: Score, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The score as a file, and a text."""
    folder = tmp_path_factory.mktemp("files")
    write_score(folder / "score.json", score)
    (folder / "text.txt").write_text(3 * PROSE)
    return folder / "score.json", folder / "text.txt"


@pytest.fixture(scope="module")
def device(ours: Build) -> Iterator[Proxy]:
    with rpc_device(ours.tool("ggml-rpc-server")) as proxy:
        yield proxy


Used = Callable[..., float]


@pytest.fixture(scope="module")
def used(six: Path, device: Proxy) -> Used:
    """What the device is asked for by a load without some blocks, in MiB, as it sees it."""

    @cache
    def mib(*out: int) -> float:
        device.allocated.clear()
        with Llama(
            six,
            skip_layers=out or None,
            n_ctx=N_CTX,
            n_gpu_layers=-1,
            rpc_servers=device.endpoint,
            flash_attn=None,
            verbose=False,
            **ONE,
        ):
            return sum(device.allocated) / 2**20

    return mib


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    try:
        code = main(["plan", *map(str, args)])
    except SystemExit as err:
        code = int(err.code or 0)
    out, err = capsys.readouterr()
    return code, out, err
