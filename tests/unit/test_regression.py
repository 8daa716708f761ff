"""The fits of a bypass against the same problems solved in another way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from llama_skip import skipset
from llama_skip.bypass import bypass
from llama_skip.bypass.bypass import Bypass
from llama_skip.bypass.regression import EPS, Sums
from llama_skip.files.identity import Identity
from llama_skip.files.store import write_json
from llama_skip.plan.file import FORMAT, Plan, is_gguf, read_plan, write_plan
from llama_skip.plan.found import Found

N, N_EMBD = 400, 24
MODEL = Identity("m.gguf", "0" * 16, "1" * 16, "llama", 6, N_EMBD, 100, "F16", 1000)


@pytest.fixture(scope="module")
def streams() -> tuple[np.ndarray, np.ndarray]:
    """A stream and what blocks made of it: a map of the normed stream, some noise, and one huge token."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, N_EMBD)).astype(np.float32) * rng.lognormal(size=(N, 1)).astype(np.float32)
    x[7] *= 1000
    low = rng.normal(size=(N_EMBD, 3)) @ rng.normal(size=(3, N_EMBD))
    z = x / np.sqrt((x**2).mean(axis=1, keepdims=True))
    t = x + z @ low + 0.5 + 0.1 * rng.normal(size=x.shape)
    return x, t.astype(np.float32)


@pytest.fixture(scope="module")
def sums(streams: tuple[np.ndarray, np.ndarray]) -> Sums:
    x, t = streams
    found = Sums(N_EMBD)
    for rows in np.array_split(np.arange(N), 7):  # the sums do not know how the text was cut
        found.add(x[rows], t[rows])
    assert found.n_tokens == N
    return found


def weights(t: np.ndarray) -> np.ndarray:
    return 1 / ((t.astype(np.float64) ** 2).mean(axis=1) + EPS)


def test_scale_and_affine_are_weighted_least_squares(
    sums: Sums, streams: tuple[np.ndarray, np.ndarray]
) -> None:
    x, t = (part.astype(np.float64) for part in streams)
    root = np.sqrt(weights(t))[:, None]
    expected = np.linalg.lstsq((x * root).reshape(-1, 1), (t * root).reshape(-1), rcond=None)[0]
    assert sums.scale() == pytest.approx(float(expected[0]), rel=1e-5)
    a, b = sums.affine()
    for channel in range(N_EMBD):
        design = np.stack([x[:, channel], np.ones(N)], axis=1) * root
        expected = np.linalg.lstsq(design, t[:, channel] * root[:, 0], rcond=None)[0]
        assert (a[channel], b[channel]) == pytest.approx(tuple(expected), rel=1e-4, abs=1e-5)


def test_a_channel_that_does_not_vary_is_only_shifted() -> None:
    x = np.ones((50, 2), np.float32)
    x[:, 1] = np.arange(50)
    t = np.stack([np.full(50, 3.0), 2 * np.arange(50) + 1], axis=1).astype(np.float32)
    sums = Sums(2)
    sums.add(x, t)
    a, b = sums.affine()
    assert (a[0], b[0]) == pytest.approx((1, 2), abs=1e-4)
    assert (a[1], b[1]) == pytest.approx((2, 1), abs=1e-2)


def test_the_full_map_is_weighted_ridge_regression(
    sums: Sums, streams: tuple[np.ndarray, np.ndarray]
) -> None:
    x, t = (part.astype(np.float64) for part in streams)
    w = weights(t)
    z = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + EPS)
    mean_z, mean_d = (np.average(part, axis=0, weights=w) for part in (z, t - x))
    zc, dc = z - mean_z, t - x - mean_d
    covariance = (zc * w[:, None]).T @ zc
    for ridge in (1e-6, 0.1, 10):
        penalty = ridge * np.trace(covariance) / N_EMBD * np.eye(N_EMBD)
        expected = np.linalg.solve(covariance + penalty, (zc * w[:, None]).T @ dc)
        fit = sums.linear().fit(ridge, N_EMBD)
        found = fit.v.T @ fit.u.T
        assert found == pytest.approx(expected, abs=2e-4)
        assert fit.b == pytest.approx(mean_d - mean_z @ expected, abs=2e-4)


def test_a_lower_rank_is_the_best_one_of_that_rank(
    sums: Sums, streams: tuple[np.ndarray, np.ndarray]
) -> None:
    x, t = (part.astype(np.float64) for part in streams)
    z, w = bypass.normed(x, EPS), weights(t)

    def error(u: np.ndarray, v: np.ndarray) -> float:
        d = t - x - z @ v.T @ u.T
        d = d - np.average(d, axis=0, weights=w)
        return float(w @ (d**2).sum(axis=1))

    fits = sums.linear()
    errors = [error(fit.u, fit.v) for fit in (fits.fit(1e-9, rank) for rank in range(1, 7))]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.05 * errors[1]  # the map has rank 3
    best = fits.fit(1e-9, 2)
    assert best.u.shape == (N_EMBD, 2) and best.v.shape == (2, N_EMBD)
    rng = np.random.default_rng(1)
    for _ in range(20):  # no neighbour is better
        near = best.u + 0.01 * rng.normal(size=best.u.shape), best.v + 0.01 * rng.normal(size=best.v.shape)
        assert error(*near) > errors[1]


def test_a_gain_keeps_the_mean(sums: Sums, streams: tuple[np.ndarray, np.ndarray]) -> None:
    x, t = (part.astype(np.float64) for part in streams)
    z, w = bypass.normed(x, EPS), weights(t)
    one, two = (
        z @ fit.v.T @ fit.u.T + fit.b for fit in (sums.linear().fit(0.1, 2, gain) for gain in (1, 1.5))
    )
    mean = np.average(one, axis=0, weights=w)
    assert np.allclose(mean, np.average(two, axis=0, weights=w), atol=1e-6)
    assert np.allclose(two - mean, 1.5 * (one - mean), atol=1e-6)


def test_a_huge_token_does_not_rule(streams: tuple[np.ndarray, np.ndarray]) -> None:
    x, t = streams
    without = Sums(N_EMBD)
    rest = np.arange(N) != 7
    without.add(x[rest], t[rest])
    whole = Sums(N_EMBD)
    whole.add(x, t)
    one, two = (part.linear().fit(0.1, 3) for part in (whole, without))
    change = one.v.T @ one.u.T - two.v.T @ two.u.T
    assert np.linalg.norm(change) < 0.02 * np.linalg.norm(two.v.T @ two.u.T)


def plan(**parts: object) -> Plan:
    return replace(Plan(MODEL, "1,3-4", found=Found("given")), **parts)


def some_bypass(rank: int = 3) -> list[Bypass]:
    rng = np.random.default_rng(2)
    u, v = rng.normal(size=(32, rank)), rng.normal(size=(rank, 32))
    return [
        bypass.affine(range(1, 2), np.arange(32), np.ones(32)),
        bypass.linear(range(3, 5), u, v, np.arange(32), 1e-6),
    ]


@pytest.mark.parametrize("n_embd", [64, 576, 896, 100])
def test_the_largest_rank_is_the_largest_that_fits(n_embd: int) -> None:
    def n_bytes(rank: int) -> int:
        return bypass.linear(
            range(1), np.ones((n_embd, rank)), np.ones((rank, n_embd)), np.ones(n_embd), None
        ).n_bytes

    for of_gap in (10, 30_000, 1_000_000, 2_300_000, 10**9):
        rank = bypass.largest_rank(n_embd, of_gap)
        within = range(1, n_embd // bypass.RANK_SHARE + 1)
        fits = [other for other in within if n_bytes(other) <= of_gap / bypass.BYTES_SHARE]
        assert rank == max(fits, default=0)
        assert rank == 0 or n_bytes(rank) == bypass.n_bytes_of_linear(n_embd, rank)
    assert bypass.largest_rank(n_embd, 10**9, 7) == 7


def test_a_plan_with_a_bypass_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.gguf"
    made = plan(bypass=some_bypass(), skip_scale="")
    write_plan(path, made)
    assert is_gguf(path)
    found = read_plan(path)
    assert found == made
    for one, two in zip(found.bypass, made.bypass, strict=True):
        assert one.tensors.keys() == two.tensors.keys() and one.n_bytes == two.n_bytes
        for name, tensor in one.tensors.items():
            assert tensor.type == two.tensors[name].type
            assert np.array_equal(tensor.values(), two.tensors[name].values())
    assert bypass.described(found.bypass) == "affine at 1, linear (rank 3) at 3"


@pytest.mark.parametrize(("rank", "kinds"), [(3, ("F16", "Q8_0")), (32, ("Q8_0", "Q8_0"))])
def test_maps_are_small(rank: int, kinds: tuple[str, str]) -> None:
    part = some_bypass(rank)[1]
    assert (part.tensors["u"].type, part.tensors["v"].type) == tuple(Type[kind] for kind in kinds)
    assert part.tensors["b"].type == Type.F32


def test_apply() -> None:
    first, second = some_bypass()
    x = np.random.default_rng(3).normal(size=(5, 32)).astype(np.float32)
    assert first.apply(x) == pytest.approx(x * np.arange(32) + 1)
    u, v = (second.tensors[name].values().astype(np.float64) for name in "uv")
    z = x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True) + 1e-6)
    assert second.apply(x) == pytest.approx(x + z @ v.T @ u.T + np.arange(32), rel=1e-4, abs=1e-4)


def test_files_that_are_no_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.gguf"
    write_plan(path, plan(bypass=some_bypass()))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a GGUF file, or cut short"):
        read_plan(path)
    path.write_bytes(whole.replace(b"skip.plan_file", b"skip.plan_xxxx"))
    with pytest.raises(ValueError, match=r"not a plan file: it has no skip\.plan_file"):
        read_plan(path)
    content = {
        "model": {"model_id": "0", "file_id": "1"},
        "skip_layers": "1",
        "bypass": [{"gap": 1, "n_blocks": 1, "tier": "affine"}],
    }
    write_json(path, FORMAT, content)
    with pytest.raises(ValueError, match="a bypass without its tensors"):
        read_plan(path)


def test_gaps() -> None:
    assert skipset.gaps([4, 3, 9, 1, 3]) == [range(1, 2), range(3, 5), range(9, 10)]
    assert skipset.gaps([]) == []
