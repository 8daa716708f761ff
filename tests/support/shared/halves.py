"""Shared by tests of several folders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_skip.files.identity import Identity, TextInfo
from llama_skip.score.file import BlockScore, Score, Step
from llama_skip.score.sizes import Sizes
from llama_skip.skipset import HALVES, Unit, block_of

TEXT = TextInfo("file", "text.txt", "0" * 64, 1024, 512, 2, 510)
ATTN, FFN, KV = 4, 12, 8  # bytes of the halves of a block, and of the attention's cache


def score_with_halves(model: Identity, path: Sequence[Unit], klds: Sequence[float], **changes: Any) -> Score:
    """A score whose path costs `klds`; perplexity is 10 and 1 more for each tenth of a nat.

    Every block takes 16 bytes, of which the attention has 4.
    """
    n = model.n_layer
    blocks = [BlockScore(il, weights_bytes=ATTN + FFN, kv_bytes_per_token=KV) for il in range(n)]
    halves = [
        BlockScore(il, weights_bytes=size, kv_bytes_per_token=kv, half=half)
        for il in range(n)
        for half, size, kv in zip(HALVES, (ATTN, FFN), (KV, 0), strict=True)
    ]
    sizes = Sizes([ATTN + FFN] * n, {half.unit: half.weights_bytes for half in halves})
    steps = [
        Step(
            block_of(unit),
            10 + 10 * kld,
            0.1,
            kld,
            0.01,
            0.9,
            510,
            int(sizes.of(path[:i])),
            half="" if isinstance(unit, int) else unit[1],
        )
        for i, (unit, kld) in enumerate(zip(path, klds, strict=True), 1)
    ]
    settings = {"halves": True, "per": "weights", **changes}
    return Score(model, TEXT, settings, True, 10.0, 0.1, blocks, [], steps, halves)
