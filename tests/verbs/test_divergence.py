"""KL divergence, top-1 agreement and -log p against their definitions in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from llama_skip.measure import perplexity
from llama_skip.measure.divergence import Scored, kl_divergence, score_window, summary, top1

SHAPES = [(1, 2), (7, 3), (40, 49152), (3, 300_001)]  # few and many rows in a chunk, and one that fills it


def rows(shape: tuple[int, int], seed: int, spread: float = 4.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3, spread, shape).astype(np.float32)


def log_softmax(row: np.ndarray) -> np.ndarray:
    x = row.astype(np.float64)
    return x - x.max() - math.log(math.fsum(np.exp(x - x.max())))


def expected_kld(logits: np.ndarray, reference: np.ndarray) -> list[float]:
    found = []
    for q, p in zip(map(log_softmax, logits), map(log_softmax, reference), strict=True):
        found.append(math.fsum(np.exp(p) * (p - q)))
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("change", [0.01, 1.0, 5.0])
def test_kl_divergence(shape: tuple[int, int], change: float) -> None:
    reference = rows(shape, 1)
    logits = reference + rows(shape, 2, change)
    # float32 exponentials: 6e-8 each, in sums whose terms have either sign
    assert kl_divergence(logits, reference) == pytest.approx(expected_kld(logits, reference), abs=1e-6)
    assert (kl_divergence(logits, logits) == 0).all()
    # a constant added to a row changes nothing
    assert kl_divergence(reference + np.float32(8), reference) == pytest.approx(0, abs=1e-6)


def test_it_is_the_reference_that_weighs() -> None:
    reference, logits = np.float32([[0, 0]]), np.float32([[0, 2]])
    p, q = [0.5, 0.5], [1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2))]
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert kl_divergence(logits, reference)[0] == pytest.approx(expected, abs=1e-6)
    assert kl_divergence(reference, logits)[0] != pytest.approx(expected, abs=1e-2)


def test_logits_far_apart_do_not_overflow() -> None:
    reference = np.float32([[0, -500, 900]])
    logits = np.float32([[0, 800, -300]])
    assert kl_divergence(logits, reference)[0] == pytest.approx(1100, rel=1e-6)


def test_top1() -> None:
    reference, logits = rows((50, 20), 3), rows((50, 20), 4)
    expected = [
        list(a).index(max(a)) == list(b).index(max(b)) for a, b in zip(logits, reference, strict=True)
    ]
    assert top1(logits, reference).tolist() == expected
    assert 0 < sum(expected) < 50


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_surprisal(shape: tuple[int, int]) -> None:
    logits = rows(shape, 5)
    targets = np.random.default_rng(6).integers(shape[1], size=shape[0]).tolist()
    expected = [-log_softmax(row)[target] for row, target in zip(logits, targets, strict=True)]
    # llama-perplexity rounds the difference of two logits, here up to 40, to float32
    assert perplexity.surprisal(logits, targets) == pytest.approx(expected, abs=4e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(value: float) -> None:
    good = rows((5, 9), 7)
    bad = good.copy()
    bad[3, 4] = value
    name = "NaN" if np.isnan(value) else "infinity"
    for logits, reference in ((good, bad), (bad, good)):
        with pytest.raises(ValueError, match=f"{name} in the logits of 1 of 5 tokens"):
            kl_divergence(logits, reference)
    with pytest.raises(ValueError, match=f"{name} in the logits of 1 of 5 tokens"):
        perplexity.surprisal(bad, [4] * 5)


class Rows:
    """A model that knows its logits."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table

    def logits(self, tokens: list[int], *, first: int) -> np.ndarray:
        return self.table[first : len(tokens)]


def test_a_window_and_its_summary() -> None:
    n_ctx, n_vocab = 65, 30
    window = np.random.default_rng(8).integers(n_vocab, size=n_ctx).tolist()
    full, less = rows((n_ctx, n_vocab), 9), rows((n_ctx, n_vocab), 10)
    first, reference = score_window(Rows(full), window)
    found, _ = score_window(Rows(less), window, reference)
    scored = range(n_ctx // 2, n_ctx - 1)  # row i predicts token i + 1, the last row none
    kld = expected_kld(less[scored], full[scored])
    nll = [-log_softmax(less[i])[window[i + 1]] for i in scored]
    assert found.kld == pytest.approx(kld, abs=1e-6)
    assert found.surprisal == pytest.approx(nll, abs=1e-5)

    half = len(scored) // 2
    pieces = [Scored(*(x[:half] for x in found)), Scored(*(x[half:] for x in found))]
    measured, divergence = summary(pieces)
    assert measured.value == pytest.approx(math.exp(np.mean(nll)))
    assert divergence.n_tokens == measured.n_tokens == len(scored) == 32
    assert divergence.mean == pytest.approx(np.mean(kld), abs=1e-6)
    assert divergence.error == pytest.approx(np.std(kld, ddof=1) / math.sqrt(len(kld)), rel=1e-5)
    ordered = sorted(kld)
    assert divergence.median == pytest.approx((ordered[15] + ordered[16]) / 2, abs=1e-6)
    assert ordered[-2] < divergence.quantile_99 <= ordered[-1] + 1e-6
    assert divergence.top1 == np.mean(less[scored].argmax(1) == full[scored].argmax(1))

    same = summary([first])[1]
    assert (same.mean, same.error, same.median, same.quantile_99, same.top1) == (0, 0, 0, 0, 1)
