"""Bypasses with tensors: what they compute, equal to numpy, and how a wrong one is refused.

A stream is what the block behind a gap reads. What goes into the gap is known from a run without the
bypass: with the identity in the gap it is what comes out. Where a bypass multiplies by a power of two it
does what a scale does, bit for bit, and that is known from test_scale.py for everything around it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from support.matrix.arch_files import Base, make, write
from support.matrix.arch_run import outcomes
from support.matrix.architectures import MODELS
from support.plan_files import Bypass, random_bypass, write_gguf, write_json
from support.shared.bypasses import halves
from support.shared.streams import streams

from comparison.builds import Build
from comparison.libllama import Library, LlamaError, Override
from comparison.oracle import expand, logits, of_blocks, skip, tensors

N_EMBD = 576  # of SmolLM2
N_TOKENS = 8
RANK = 32
PlanOf = Callable[..., dict[str, str]]


@pytest.fixture
def plan_of(tmp_path: Path, smollm2: Path) -> PlanOf:
    """From blocks and bypasses to the override of a plan file for SmolLM2."""

    def make_plan(layers: str, *bypasses: Bypass, **changes: Any) -> dict[str, str]:
        path = tmp_path / f"plan-{len(list(tmp_path.iterdir()))}.gguf"
        return {"skip.plan": f"@{write_gguf(path, smollm2, layers, list(bypasses), **changes)}"}

    return make_plan


@pytest.fixture(scope="module")
def identity_streams(ours: Build, smollm2: Path, tokens: list[int]) -> Callable[[str], dict[int, np.ndarray]]:
    """The streams of a set with nothing in its gaps."""
    return cache(lambda layers: ours.worker.call(streams, smollm2, tokens[:N_TOKENS], skip(layers)))


def close(found: np.ndarray, bypass: Bypass, x: np.ndarray) -> None:
    expected, error, spread = bypass.apply(x)
    assert np.all(np.abs(found - expected) <= error), np.max(np.abs(found - expected) / error)
    allowed = rms(error)
    if bypass.type != Type.F32 and bypass.u is not None:
        allowed = 1.5 * rms(spread)
        assert rms(found - expected) <= allowed
    # the bypass does more than the error that is allowed
    assert rms(expected - x) > 5 * allowed


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


CASES: dict[str, tuple[str, int, Bypass]] = {
    "a": ("13-14", 15, random_bypass(13, N_EMBD, n_blocks=2, parts="a")),
    "b": ("13-14", 15, random_bypass(13, N_EMBD, n_blocks=2, parts="b")),
    "a, b": ("29", 30, random_bypass(29, N_EMBD)),
    "u, v": ("13-14", 15, random_bypass(13, N_EMBD, RANK, n_blocks=2, parts="uv")),
    "b, u, v": ("13-14", 15, random_bypass(13, N_EMBD, RANK, n_blocks=2, parts="buv")),
    "all, norm": ("13-14", 15, random_bypass(13, N_EMBD, RANK, n_blocks=2, norm_eps=1e-6)),
    "norm with a large eps": ("5", 6, random_bypass(5, N_EMBD, RANK, norm_eps=100.0)),
    "rank 1": ("5", 6, random_bypass(5, N_EMBD, 1, norm_eps=1e-6)),
    "rank 33": ("5", 6, random_bypass(5, N_EMBD, 33, norm_eps=1e-6)),
    "full rank": ("5", 6, random_bypass(5, N_EMBD, N_EMBD, norm_eps=1e-6)),
    "block 0": ("0", 1, random_bypass(0, N_EMBD, RANK, norm_eps=1e-6)),
    "blocks 0-2": ("0-2", 3, random_bypass(0, N_EMBD, RANK, n_blocks=3)),
    "last block": ("29", 30, random_bypass(29, N_EMBD, RANK, norm_eps=1e-6)),
    "F16": ("13-14", 15, random_bypass(13, N_EMBD, RANK, n_blocks=2, norm_eps=1e-6, type=Type.F16)),
    "F16 without a norm": ("5", 6, random_bypass(5, N_EMBD, RANK, type=Type.F16)),
    "F16, last block": ("29", 30, random_bypass(29, N_EMBD, RANK, norm_eps=1e-6, type=Type.F16)),
    "BF16": ("5", 6, random_bypass(5, N_EMBD, RANK, norm_eps=1e-6, type=Type.BF16)),
    "Q8_0": ("13-14", 15, random_bypass(13, N_EMBD, 64, n_blocks=2, norm_eps=1e-6, type=Type.Q8_0)),
    "Q8_0, block 0": ("0", 1, random_bypass(0, N_EMBD, 64, norm_eps=1e-6, type=Type.Q8_0)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_stream_behind_a_gap_is_what_numpy_says(
    ours: Build, smollm2: Path, tokens: list[int], identity_streams: Any, plan_of: PlanOf, case: str
) -> None:
    layers, behind, bypass = CASES[case]
    before = identity_streams(layers)
    after = ours.worker.call(streams, smollm2, tokens[:N_TOKENS], plan_of(layers, bypass))
    assert sorted(after) == [il for il in range(31) if il not in expand(layers)]
    for il in range(bypass.gap):
        assert np.array_equal(after[il], before[il])
    close(after[behind], bypass, before[behind])


def test_every_gap_has_its_own_bypass(
    ours: Build, smollm2: Path, tokens: list[int], identity_streams: Any, plan_of: PlanOf
) -> None:
    first = random_bypass(5, N_EMBD, RANK, norm_eps=1e-6)
    second = random_bypass(13, N_EMBD, 64, n_blocks=2, seed=2, norm_eps=1e-5, type=Type.F16)
    third = random_bypass(29, N_EMBD, seed=3)
    layers = "5,13-14,20,29"

    def run(*bypasses: Bypass, **changes: Any) -> dict[int, np.ndarray]:
        found: dict[int, np.ndarray] = ours.worker.call(
            streams, smollm2, tokens[:N_TOKENS], plan_of(layers, *bypasses, **changes)
        )
        return found

    none, one, two = identity_streams(layers), run(first), run(first, second)
    # a gap between them has the scale that the plan gives it
    three = run(first, second, skip_scale="20:0.5")
    found = run(third, first, second, skip_scale="20:0.5")
    close(one[6], first, none[6])
    close(two[15], second, one[15])
    assert np.array_equal(three[21], np.float32(0.5) * two[21])
    close(found[30], third, three[30])
    for some, until in ((one, 6), (two, 15), (three, 28)):
        assert all(np.array_equal(found[il], some[il]) for il in some if il <= until)


#
# a power of two
#


@pytest.mark.parametrize("layers", ["13-14", "0", "29"])
@pytest.mark.parametrize(
    "options", [{}, {"flash": "on"}, {"type_k": 8, "type_v": 8, "flash": "on"}, {"n_ubatch": 7}]
)
def test_logits_are_those_of_the_scale_that_it_equals(
    ours: Build, smollm2: Path, tokens: list[int], plan_of: PlanOf, layers: str, options: dict[str, Any]
) -> None:
    blocks = expand(layers)
    expected = ours.worker.call(several, smollm2, tokens, skip(layers, "0.5"), **options)
    for bypass in halves(blocks[0], N_EMBD, len(blocks)):
        found = ours.worker.call(several, smollm2, tokens, plan_of(layers, bypass), **options)
        assert np.array_equal(found, expected)


def several(lib: Library, path: Path, tokens: list[int], overrides: Override, **options: Any) -> np.ndarray:
    """Logits of two sequences in one context, of batches and of single tokens."""
    model = lib.model(path, overrides)
    ctx = model.context(n_seq_max=2, **options)
    found = [
        ctx.decode(tokens[:16], pos=0, seq=0),
        ctx.decode(tokens[8:17], pos=0, seq=1),
        ctx.decode(tokens[16:17], pos=16, seq=0),
        ctx.decode(tokens[17:18], pos=9, seq=1),
        ctx.decode(tokens[17:25], pos=17, seq=0),
    ]
    ctx.close()
    model.close()
    return np.concatenate(found)


ARCHS = [
    *("qwen3-dense", "gemma3-dense", "falcon-dense", "gpt2-dense", "phi2-dense", "llama-moe", "olmo2-dense"),
    *("mamba-dense", "falcon-h1-dense", "nemotron_h-dense", "qwen3next-moe", "rwkv6", "rwkv7", "gemma4"),
    *("minicpm3-dense", "deepseek2-moe", "deepseek4-moe", "gemma3n", "nanbeige-dense", "bert", "t5"),
]


@pytest.mark.parametrize("name", MODELS if os.environ.get("LLAMA_SKIP_MATRIX") == "all" else ARCHS)
def test_architectures(stock: Build, ours: Build, bases: dict[str, Base], tmp_path: Path, name: str) -> None:
    """What a scale may be in an architecture, a bypass may be, and nothing else."""
    model = make(stock, tmp_path, bases, name)
    path = write(tmp_path / "model.gguf", model.arch, model.metadata, model.tensors)
    n_embd = model.value("embedding_length")
    for first, n_blocks in ((model.n_layer // 2, 1), (0, 1), (model.n_layer - 2, 2)):
        blocks = ",".join(map(str, range(first, first + n_blocks)))
        expected = ours.worker.call(outcomes, path, skip(blocks, "0.5"))[0]
        for bypass in halves(first, n_embd, n_blocks):
            plan = write_gguf(tmp_path / "plan.gguf", path, blocks, [bypass], arch=model.arch)
            found = ours.worker.call(outcomes, path, {"skip.plan": f"@{plan}"})[0]
            for got, wanted in zip(found, expected, strict=True):
                if isinstance(wanted, str):
                    assert isinstance(got, str), f"{blocks}: not refused with '{wanted}'"
                    assert "bypass" in got or "cannot be left out" in got
                else:
                    assert not isinstance(got, str), f"{blocks}: {got}"
                    assert np.array_equal(got, wanted), blocks


#
# nothing changes without one
#


def nodes(lib: Library, path: Path, tokens: list[int], overrides: Override = ()) -> list[tuple[Any, ...]]:
    """Name, operation and shape of every node of a prompt's graph and of a token's."""
    model = lib.model(path, overrides)
    ctx = model.context(tap=True)
    ctx.decode(tokens[:-1])
    ctx.decode(tokens[-1:])
    ctx.close()
    model.close()
    return ctx.nodes


def test_without_a_bypass_the_graph_is_what_it_was(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int], plan_of: PlanOf
) -> None:
    assert ours.worker.call(nodes, smollm2, tokens[:9]) == stock.worker.call(nodes, smollm2, tokens[:9])
    by_hand = ours.worker.call(nodes, smollm2, tokens[:9], skip("13-14,25"))
    assert len(by_hand) > 1000
    assert ours.worker.call(nodes, smollm2, tokens[:9], plan_of("13-14,25")) == by_hand
    with_one = ours.worker.call(
        nodes, smollm2, tokens[:9], plan_of("13-14,25", random_bypass(25, N_EMBD, RANK, norm_eps=1e-6))
    )
    assert len(with_one) == len(by_hand) + 2 * 6  # a norm, two products and with a, two sums, in two graphs


#
# what it weighs, and how it is told
#


def test_the_size_and_the_log(ours: Build, tiny: Path, tmp_path: Path) -> None:
    bypasses = [LINEAR, random_bypass(0, 64)]
    n_bytes = sum(bypass.n_bytes for bypass in bypasses)
    plan = write_gguf(tmp_path / "plan.gguf", tiny, OUT, bypasses, arch="qwen3")
    size, skipped, said, log = ours.worker.call(size_and_log, tiny, {"skip.plan": f"@{plan}"})
    left_out = sum(t.size for t in of_blocks(tiny, expand(OUT)))
    assert size == sum(t.size for t in tensors(tiny)) - left_out + n_bytes
    assert skipped == left_out
    mib = n_bytes / 2**20
    assert said == f"affine at 0, linear (rank 32) at 2, {mib:.2f} MiB"
    assert f"KV a token (F16); bypass {said}; chosen by @" in log
    assert f"bypass buffer size = {mib:8.2f} MiB" in log


def size_and_log(lib: Library, path: Path, overrides: Override) -> tuple[int, int, str, str]:
    model = lib.model(path, overrides)
    said = lib.c.llama_model_skip_bypass(model.p).decode()
    size, skipped = lib.c.llama_model_size(model.p), lib.c.llama_model_skipped_size(model.p)
    model.close()
    return size, skipped, said, "".join(lib.log)


@pytest.mark.parametrize("type_", [Type.F32, Type.F16, Type.Q8_0], ids=lambda t: t.name)
def test_a_dry_run_counts_what_a_load_allocates(
    make: Callable[..., Any], tiny: Path, tmp_path: Path, type_: Type
) -> None:
    bypass = random_bypass(2, 64, 32, n_blocks=2, norm_eps=1e-6, type=type_)
    plan = f"@{write_gguf(tmp_path / 'plan.gguf', tiny, OUT, [bypass], arch='qwen3')}"
    found = make(tiny, skip_layers=plan).memory()
    assert make(tiny, skip_layers=plan, dry_run=True).memory() == found
    without = make(tiny, skip_layers=OUT).memory()
    # tensors are padded to 32 bytes, and here none needs it
    assert found["CPU"].weights - without["CPU"].weights == bypass.n_bytes / 2**20


#
# refused; the model has four blocks of width 64
#

OUT = "0,2-3"
LINEAR = random_bypass(2, 64, RANK, n_blocks=2, norm_eps=1e-6)
VECTOR = np.ones(64, np.float32)


def tensors_of(**changed: np.ndarray | None) -> dict[str, Any]:
    return {"tensors": {f"gap.2.{name}": data for name, data in changed.items()}}


REFUSED: dict[str, tuple[list[Bypass], dict[str, Any], str]] = {
    "unknown tensor": ([LINEAR], tensors_of(w=VECTOR), "tensor 'gap.2.w' is not expected"),
    "tensor of the model": (
        [LINEAR],
        {"tensors": {"output_norm.weight": VECTOR}},
        "'output_norm.weight' is not",
    ),
    "zeros in a number": ([LINEAR], {"tensors": {"gap.02.a": VECTOR}}, "tensor 'gap.02.a' is not expected"),
    "tensor of another gap": ([LINEAR], {"tensors": {"gap.0.a": VECTOR}}, "tensor 'gap.0.a' is not expected"),
    "no tensors": (
        [LINEAR],
        tensors_of(a=None, b=None, u=None, v=None),
        "tensors of the gap at block 2 are missing",
    ),
    "no v": ([LINEAR], tensors_of(v=None), "tensor 'gap.2.v' is missing"),
    "no u": ([LINEAR], tensors_of(u=None), "tensor 'gap.2.u' is missing"),
    "width of a": ([LINEAR], tensors_of(a=VECTOR[:-1]), "'gap.2.a' has shape 63, expected 64"),
    "type of b": ([LINEAR], tensors_of(b=VECTOR.astype(np.float16)), "'gap.2.b' is f16, expected f32"),
    "b of rows": ([LINEAR], tensors_of(b=np.stack([VECTOR] * 2)), "'gap.2.b' has shape 64x2, expected 64"),
    "type of v": (
        [LINEAR],
        tensors_of(v=np.ones((RANK, 64), np.int32)),
        "'gap.2.v' is i32, expected f32, f16, bf16",
    ),
    "v the other way": ([LINEAR], tensors_of(v=LINEAR.u), "'gap.2.v' has shape 32x64, expected 64x64"),
    "rank of u": (
        [LINEAR],
        tensors_of(u=np.ones((64, 16), np.float32)),
        "'gap.2.u' has shape 16x64, expected 32x64",
    ),
    "no gap": (
        [random_bypass(1, 64)],
        {},
        "the bypass of the gap at block 1 is for 1 blocks, that is no gap",
    ),
    "within a gap": ([random_bypass(3, 64)], {}, "the gap at block 3 is for 1 blocks, that is no gap"),
    "shorter than the gap": (
        [random_bypass(2, 64)],
        {},
        "the gap at block 2 is for 1 blocks, that is no gap",
    ),
    "longer than the gap": (
        [random_bypass(0, 64, n_blocks=2)],
        {},
        "block 0 is for 2 blocks, that is no gap",
    ),
    "behind the last block": (
        [random_bypass(600, 64)],
        {},
        "the gap at block 600 is for 1 blocks, that is no gap",
    ),
    "twice": ([LINEAR, LINEAR], {}, "two bypasses of the gap at block 2"),
    "and a scale": ([LINEAR], {"skip_scale": "2:0.9"}, "the gap at block 2 and its scale exclude each other"),
    "and every scale": (
        [LINEAR],
        {"skip_scale": "0.9"},
        "the gap at block 2 and its scale exclude each other",
    ),
    "another architecture": (
        [LINEAR],
        {"arch": "llama"},
        "is for architecture 'llama', the model has 'qwen3'",
    ),
    "another model": (
        [LINEAR],
        {"model": {"model_id": "0", "file_id": "0"}},
        "the plan file is about another model",
    ),
    "version": ([LINEAR], {"version": 2}, "the plan file has version 2, this build knows 1"),
    "no set": ([LINEAR], {"skip_layers": ...}, "not a whole plan file"),
    "another format": ([LINEAR], {"format": "llama-skip-score"}, "not a plan file"),
}
for key, value, reason in (
    ("rank", 16, "the rank of the gap at block 2 is 16, its tensors have 32"),
    ("rank", "32", 'rank of a bypass is "32", expected a whole number'),
    ("tier", "affine", "the tier of the gap at block 2 is 'affine', its tensors are those of 'linear'"),
    ("tier", None, "not a whole plan file"),
    ("gap", 2.5, "gap of a bypass is 2.5, expected a whole number"),
    ("gap", -1, "gap of a bypass is -1, expected a whole number"),
    ("n_blocks", 2**40, "n_blocks of a bypass is 1099511627776, expected a whole number"),
    ("norm_eps", -1e-6, "norm_eps of the gap at block 2 is not a number of at least 0"),
    ("norm_eps", "1e-6", "not a whole plan file"),
    ("norm_eps", ..., "not a whole plan file"),
):
    said = {k: v for k, v in {**LINEAR.entry(), key: value}.items() if v is not ...}
    REFUSED[f"{key} {value}"] = ([LINEAR], {"bypass": [said]}, reason)


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_plan_is_refused_before_anything_is_loaded(
    ours: Build, small: Path, tmp_path: Path, case: str
) -> None:
    bypasses, changes, reason = REFUSED[case]
    plan = write_gguf(tmp_path / "plan.gguf", small, OUT, bypasses, **{"arch": "qwen3", **changes})
    assert_refused(ours, small, plan, reason)


def assert_refused(ours: Build, model: Path, plan: Path, reason: str) -> None:
    said = ours.worker.call(check, model, plan)
    assert said.startswith("skip_layers: ")
    assert reason in said
    with pytest.raises(LlamaError) as error:
        ours.worker.call(logits, model, [1, 2, 3], {"skip.plan": f"@{plan}"}, n_single=1)
    assert reason in str(error.value)
    assert "model buffer size" not in str(error.value)


def check(lib: Library, model: Path, plan: Path) -> str:
    done = lib.c.llama_skip_check(
        str(model).encode(), f"@{plan}".encode(), None, b"skip_layers", b"skip_scale"
    )
    return "" if done else str(lib.c.llama_skip_error().decode())


def test_a_right_plan_is_not_refused(ours: Build, small: Path, tmp_path: Path) -> None:
    plan = write_gguf(tmp_path / "plan.gguf", small, OUT, [LINEAR], arch="qwen3")
    assert ours.worker.call(check, small, plan) == ""
    assert np.isfinite(
        ours.worker.call(logits, small, [1, 2, 3], {"skip.plan": f"@{plan}"}, n_single=1)
    ).all()


def test_a_file_cut_short_is_refused(ours: Build, small: Path, tmp_path: Path) -> None:
    plan = write_gguf(tmp_path / "plan.gguf", small, OUT, [LINEAR], arch="qwen3")
    whole = plan.read_bytes()
    for n_bytes, reason in (
        (
            len(whole) - 32,
            "the file is cut short: tensor 'gap.2.",
        ),  # it may end with up to 31 bytes of padding
        (len(whole) - LINEAR.n_bytes, "the file is cut short: tensor 'gap.2."),
        (200, "not a readable GGUF file"),
        (5, "not a readable GGUF file"),
        (3, "not a plan file"),
    ):
        plan.write_bytes(whole[:n_bytes])
        assert_refused(ours, small, plan, reason)


def test_tensors_without_their_place_in_a_plan_are_refused(ours: Build, small: Path, tmp_path: Path) -> None:
    plan = write_gguf(tmp_path / "plan.gguf", small, OUT, [LINEAR], arch="qwen3", bypass=...)
    assert_refused(ours, small, plan, "is not expected: the plan has no bypass with it")
    plan = write_json(tmp_path / "plan.json", small, OUT, bypass=[LINEAR.entry()])
    assert_refused(
        ours, small, plan, "the tensors of its bypass are missing: a plan file with a bypass is a GGUF"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("part", "type_"), [("a", Type.F32), ("b", Type.F32), ("u", Type.F16), ("v", Type.F32)]
)
def test_values_that_are_not_finite_are_refused_before_the_weights(
    ours: Build, small: Path, tmp_path: Path, part: str, type_: Type, value: float
) -> None:
    bypass = random_bypass(2, 64, RANK, n_blocks=2, type=type_)
    data = bypass.tensors()[f"gap.2.{part}"].copy()
    data.flat[-1] = value
    plan = write_gguf(
        tmp_path / "plan.gguf", small, OUT, [bypass], arch="qwen3", **tensors_of(**{part: data})
    )
    with pytest.raises(LlamaError, match=f"tensor 'gap.2.{part}' has values that are not finite") as error:
        ours.worker.call(logits, small, [1, 2, 3], {"skip.plan": f"@{plan}"}, n_single=1)
    assert "model buffer size" not in str(error.value)


def test_scales_beside_a_plan_with_a_bypass_are_refused(ours: Build, small: Path, tmp_path: Path) -> None:
    plan = write_gguf(tmp_path / "plan.gguf", small, OUT, [LINEAR], arch="qwen3")
    for scale in ("0:0.9", "2:0.9"):
        with pytest.raises(LlamaError, match=r"skip\.scale: the plan '@.*' brings bypasses of its own"):
            ours.worker.call(
                logits, small, [1, 2, 3], {"skip.plan": f"@{plan}", "skip.scale": scale}, n_single=1
            )


#
# hidden states
#


@pytest.mark.parametrize(("layers", "gap", "before"), [("1-2", 1, 0), ("0,2", 2, 1)])
def test_hidden_states_are_those_around_the_bypass(
    make: Callable[..., Any], tiny: Path, tmp_path: Path, layers: str, gap: int, before: int
) -> None:
    """What leaves the block before a gap has not gone through its bypass, what enters the next one has."""
    bypass = random_bypass(gap, 64, RANK, n_blocks=3 - gap, norm_eps=1e-6)
    plan = f"@{write_gguf(tmp_path / 'plan.gguf', tiny, layers, [bypass], arch='qwen3')}"
    tokens = [1, 338, 2501, 99, 7]
    states = make(tiny, skip_layers=plan, hidden_states=True).hidden_states(tokens)
    plain = make(tiny, skip_layers=layers, hidden_states=True).hidden_states(tokens)
    i = states.blocks.index(before)
    assert np.array_equal(states.outputs[i], plain.outputs[i])
    close(states.inputs[i + 1], bypass, states.outputs[i])
