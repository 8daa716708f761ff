"""How far the output moves when blocks that can be spared are left out: SmolLM2 against itself, whole.

The bounds hold for this text and model. They leave the measured values room for the rounding of another CPU
and none for a wrong block: leaving out one of those moves the output several times as far.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.shared.prose import PROSE

from comparison.builds import Build
from comparison.oracle import logits, skip, tokens_of

# blocks, upper bound of the mean KL divergence, lower bound of equal first choices; behind: what was found
SENSIBLE = [
    ("17", 0.12, 0.78),  # 0.094, 0.83
    ("3,17", 0.25, 0.70),  # 0.198, 0.76
    ("3,5,17", 0.39, 0.64),  # 0.318, 0.70
]
# the same with a block that SmolLM2 cannot spare in place of another: 1.5 to 3.2, 0.14 to 0.60
WRONG = [["1", "11", "29"], ["1,17", "3,11"], ["3,11,17", "3,17,29"]]


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def distance(full: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Mean KL divergence from the full model in nats, and the share of tokens with the same first choice."""
    p, q = log_softmax(full), log_softmax(other)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean()), float((p.argmax(1) == q.argmax(1)).mean())


@pytest.fixture(scope="module")
def full_model(stock: Build, smollm2: Path) -> tuple[list[int], np.ndarray]:
    """Tokens of the text and the unpatched library's logits for them."""
    tokens = stock.worker.call(tokens_of, smollm2, PROSE)
    return tokens, stock.worker.call(logits, smollm2, tokens, n_single=1)


@pytest.mark.parametrize(("case", "wrong"), list(zip(SENSIBLE, WRONG, strict=True)), ids=lambda v: str(v[0]))
def test_the_output_stays_close_exactly_with_sensible_blocks(
    ours: Build,
    smollm2: Path,
    full_model: tuple[list[int], np.ndarray],
    case: tuple[str, float, float],
    wrong: list[str],
) -> None:
    tokens, full = full_model
    spec, kl_max, same_min = case

    def measured(layers: str) -> tuple[float, float]:
        return distance(full, ours.worker.call(logits, smollm2, tokens, skip(layers), n_single=1))

    kl, same = measured(spec)
    assert 0.01 < kl < kl_max  # left out for certain, and close
    assert same_min < same < 1
    for layers in wrong:
        kl, same = measured(layers)
        assert kl > 3 * kl_max, layers
        assert same < same_min, layers
