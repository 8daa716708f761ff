"""Bypasses with tensors that a run-time mask brings, and what saved states and prefixes say about them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.matrix.arch_files import Base, write
from support.matrix.arch_files import make as make_arch
from support.plan_files import Bypass, random_bypass, write_gguf
from support.shared.counter import Counter
from support.shared.states import cross

from comparison.builds import Build
from comparison.libllama import Context, Library, LlamaError, Override
from comparison.oracle import logits, skip

RANK = 32
TOKENS = [1, 338, 2501, 99, 7, 410, 3, 77, 12]
Mask = tuple[str | None, str | None]
PlanOf = Callable[..., str]


@pytest.fixture
def plan_of(tmp_path: Path, tiny: Path) -> PlanOf:
    """From blocks and bypasses to the text of a plan for the tiny model: four blocks of width 64."""

    def make_plan(layers: str, *bypasses: Bypass, **changes: Any) -> str:
        path = tmp_path / f"plan-{len(list(tmp_path.iterdir()))}.gguf"
        return f"@{write_gguf(path, tiny, layers, list(bypasses), arch='qwen3', **changes)}"

    return make_plan


def linear(gap: int, n_blocks: int = 1, **more: Any) -> Bypass:
    return random_bypass(gap, 64, RANK, n_blocks=n_blocks, norm_eps=1e-6, **more)


def of(ours: Build, model: Path, overrides: Override = (), mask: Mask | None = None) -> np.ndarray:
    found: np.ndarray = ours.worker.call(logits, model, TOKENS, overrides, mask=mask, n_single=3)
    return found


def test_a_plan_as_a_mask_is_that_plan(ours: Build, tiny: Path, plan_of: PlanOf) -> None:
    for plan in (
        plan_of("1-2", linear(1, 2)),
        plan_of("0,2-3", random_bypass(0, 64), linear(2, 2)),
        plan_of("0,2", linear(2), skip_scale="0:0.5"),
        plan_of("1,3", skip_scale="0.5"),
        plan_of("2"),
    ):
        expected = of(ours, tiny, {"skip.plan": plan})
        assert np.array_equal(of(ours, tiny, mask=(plan, None)), expected)
    # a plan without factors takes them from outside
    found = of(ours, tiny, mask=(plan_of("1-2"), "1:0.5"))
    assert np.array_equal(found, of(ours, tiny, skip("1-2", "1:0.5")))
    found = of(ours, tiny, skip("0"), (plan_of("2"), "0.5"))
    assert np.array_equal(found, of(ours, tiny, skip("0,2", "0.5")))


def test_a_bypass_belongs_to_its_gap(ours: Build, tiny: Path, plan_of: PlanOf) -> None:
    """What the model was loaded with stays in the gaps that a mask leaves as they are, and nowhere else."""
    bypass, other = linear(1), random_bypass(3, 64, seed=2)
    loaded = plan_of("1", bypass)
    both = plan_of("1,3", bypass, other)
    cases: list[tuple[Mask, Override]] = [
        ((None, None), {"skip.plan": loaded}),
        (("none", None), {"skip.plan": loaded}),
        (("3", None), {"skip.plan": plan_of("1,3", bypass)}),
        (("2", None), skip("1-2")),
        (("0", None), skip("0-1")),
        (("3", "3:0.5"), {"skip.plan": plan_of("1,3", bypass, skip_scale="3:0.5")}),
        (("none", "1:0.5"), skip("1", "0.5")),  # a scale takes its place
        (("3", "0.5"), skip("1,3", "0.5")),
        (("none", "1:1"), skip("1")),
        ((both, None), {"skip.plan": both}),
        ((plan_of("3", other), None), {"skip.plan": both}),
        ((plan_of("1-2", linear(1, 2)), None), {"skip.plan": plan_of("1-2", linear(1, 2))}),
        ((plan_of("1", linear(1, seed=5)), None), {"skip.plan": plan_of("1", linear(1, seed=5))}),
        ((plan_of("1", skip_scale="1:0.5"), None), skip("1", "0.5")),
    ]
    for mask, same_as in cases:
        expected = of(ours, tiny, same_as)
        assert np.array_equal(of(ours, tiny, {"skip.plan": loaded}, mask), expected), mask
    # and a load-time scale makes room for a bypass
    found = of(ours, tiny, skip("1", "0.5"), (loaded, None))
    assert np.array_equal(found, of(ours, tiny, {"skip.plan": loaded}))


def toggled(lib: Library, path: Path, masks: Sequence[Mask]) -> tuple[list[np.ndarray], list[str]]:
    model = lib.model(path)
    ctx = model.context(n_ctx=64)
    found, tags = [], []
    for mask in masks:
        ctx.c.llama_memory_clear(ctx.memory, False)
        ctx.mask(*mask)
        found.append(
            np.concatenate([ctx.decode(TOKENS[:6]), ctx.decode(TOKENS[6:7]), ctx.decode(TOKENS[7:8])])
        )
        tags.append(ctx.c.llama_skip_state_tag(ctx.p).decode())
    ctx.close()
    model.close()
    return found, tags


def test_plans_change_back_and_forth_in_one_context(ours: Build, tiny: Path, plan_of: PlanOf) -> None:
    """Graphs of one shape whose tensors differ are not taken for each other, wherever the tensors lie."""
    one, two = plan_of("1-2", linear(1, 2)), plan_of("1-2", linear(1, 2, seed=2))
    masks: list[Mask] = [(m, None) for m in (one, two, "1-2", one, None, two, one, two, "1", one)]
    found, tags = ours.worker.call(toggled, tiny, masks)
    expected = {mask: ours.worker.call(toggled, tiny, [mask]) for mask in set(masks)}
    for mask, rows, tag in zip(masks, found, tags, strict=True):
        assert np.array_equal(rows, expected[mask][0][0]), mask
        assert tag == expected[mask][1][0]
    assert len({rows.tobytes() for rows in found}) == len(set(masks)) == len(set(tags))
    assert tags[4] == ""
    assert re.fullmatch(r"mask 1-2, bypass 1:[0-9a-f]{16}", tags[0])


def draft_and_verify(lib: Library, path: Path, mask: str | None) -> np.ndarray:
    ctx = lib.model(path).context(n_ctx=64)
    ctx.decode(TOKENS[:4])
    if mask:
        ctx.mask(mask)
    ctx.decode(TOKENS[4:6])
    if mask:
        ctx.mask(None)
    assert lib.c.llama_memory_seq_rm(ctx.memory, 0, 4, -1)
    return ctx.decode(TOKENS[4:8])


def test_draft_under_a_plan_and_verify_at_full_depth(
    stock: Build, ours: Build, tiny: Path, plan_of: PlanOf
) -> None:
    expected = stock.worker.call(draft_and_verify, tiny, None)
    assert np.array_equal(ours.worker.call(draft_and_verify, tiny, plan_of("1-2", linear(1, 2))), expected)


def refusals(
    lib: Library,
    path: Path,
    overrides: Override,
    good: str,
    bad: Sequence[Mask],
    tokens: Sequence[int] = TOKENS,
) -> tuple[list[str], list[bool]]:
    """Why each mask is refused, and whether the context goes on as under the good one."""
    ctx = lib.model(path, overrides).context(n_ctx=64)
    ctx.mask(good)
    tag, first = ctx.c.llama_skip_state_tag(ctx.p), ctx.decode(tokens)
    said, same = [], []
    for mask in bad:
        try:
            ctx.mask(*mask)
            said.append("taken")
        except LlamaError as error:
            said.append(str(error))
        lib.c.llama_memory_clear(ctx.memory, False)
        same.append(ctx.c.llama_skip_state_tag(ctx.p) == tag and np.array_equal(ctx.decode(tokens), first))
    return said, same


def test_a_bad_plan_is_refused_and_the_old_mask_stays(ours: Build, tiny: Path, plan_of: PlanOf) -> None:
    bypass = linear(1, 2)
    not_finite = {"gap.1.a": np.full(64, np.nan, np.float32)}
    cases: list[tuple[Mask, str]] = [
        (("@nowhere.gguf", None), "mask: '@nowhere.gguf': the file cannot be read"),
        (("@nowhere", None), "mask: '@nowhere': the model brings no plan of that name"),
        (("auto:1", None), "mask: 'auto:1': the model brings no greedy path"),
        (("auto:", None), "mask: 'auto:': expected auto:P%"),
        ((plan_of("1", linear(1), tensors=not_finite), None), "'gap.1.a' has values that are not finite"),
        ((plan_of("1-2", bypass, tensors={"gap.1.v": None}), None), "tensor 'gap.1.v' is missing"),
        ((plan_of("1-2", linear(1)), None), "the gap at block 1 is for 1 blocks, that is no gap"),
        ((plan_of("0-2", linear(0, 3)), None), "every block is left out"),
        # the model's block 3 joins the gap
        ((plan_of("1-2", skip_scale="1:0.5"), None), "the plan scales the gap of blocks 1-2, that is no gap"),
        ((plan_of("2", linear(2)), None), "the gap at block 2 is for 1 blocks, that is no gap"),
        ((plan_of("0", linear(0)), "0:0.5"), "mask scale: the plan '@"),
        ((plan_of("0", skip_scale="0:0.5"), "0:0.5"), "brings scales of its own (0:0.5)"),
    ]
    said, same = ours.worker.call(
        refusals, tiny, skip("3"), plan_of("0", linear(0, seed=3)), [mask for mask, _ in cases]
    )
    for (_, reason), why in zip(cases, said, strict=True):
        assert reason in why
    assert all(same)


def test_an_architecture_without_a_place_keeps_the_old_mask(
    stock: Build, ours: Build, bases: dict[str, Base], tmp_path: Path
) -> None:
    """The refusal comes when the graph is built: what the plan brought is gone by then."""
    model = make_arch(stock, tmp_path, bases, "gemma3n")
    path = write(tmp_path / "model.gguf", model.arch, model.metadata, model.tensors)
    n_embd = model.value("embedding_length")
    plan = write_gguf(tmp_path / "plan.gguf", path, "1", [random_bypass(1, n_embd)], arch=model.arch)
    (why,), same = ours.worker.call(refusals, path, {}, "2", [(f"@{plan}", None)], [1, 5, 9, 7])
    assert "architecture 'gemma3n' has no place for a bypass at block 1" in why
    assert same == [True]
    with pytest.raises(LlamaError, match="no context"):
        ours.worker.call(logits, path, [1, 2, 3], {"skip.plan": f"@{plan}"}, n_single=1)


def after_change(lib: Library, path: Path, plan: str, change: Callable[[Path], None]) -> tuple[str, bool]:
    model = lib.model(path, load_mode="none")
    ctx = model.context(n_ctx=64)
    ctx.mask("2")
    first = ctx.decode(TOKENS)
    change(path)
    said = ""
    try:
        ctx.mask(plan)
    except LlamaError as error:
        said = str(error)
    lib.c.llama_memory_clear(ctx.memory, False)
    return said, np.array_equal(ctx.decode(TOKENS), first)


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def test_a_plan_needs_the_file_that_was_loaded(
    ours: Build, tiny: Path, small: Path, plan_of: PlanOf, tmp_path: Path
) -> None:
    plan = plan_of("1-2", linear(1, 2))
    for change in (remove, cut):
        shutil.copyfile(tiny, tmp_path / "model.gguf")
        said, same = ours.worker.call(after_change, tmp_path / "model.gguf", plan, change)
        assert said.startswith(f"mask: '{plan}': ")
        assert "failed to load model from" in said
        assert same
    shutil.copyfile(tiny, tmp_path / "model.gguf")
    shutil.copyfile(small, tmp_path / "other.gguf")
    said, same = ours.worker.call(after_change, tmp_path / "model.gguf", plan, other)
    assert "has changed since it was loaded" in said
    assert same


def other(path: Path) -> None:
    (path.parent / "other.gguf").replace(path)


#
# states and prefixes
#


def test_states_never_cross_bypasses(ours: Build, tiny: Path, plan_of: PlanOf, tmp_path: Path) -> None:
    bypass = linear(1)
    plans = {
        "bypass": plan_of("1", bypass),
        "other numbers": plan_of("1", linear(1, seed=2)),
        "another type": plan_of("1", linear(1, type=1)),
        "another eps": plan_of("1", random_bypass(1, 64, RANK, norm_eps=2e-6)),
        "no norm": plan_of("1", random_bypass(1, 64, RANK)),
        "without b": plan_of("1", linear(1, parts="auv")),
    }
    contexts: dict[str, tuple[Override, Mask]] = {
        **{name: ({"skip.plan": plan}, (None, None)) for name, plan in plans.items()},
        "identity": (skip("1"), (None, None)),
        "scale": (skip("1", "0.5"), (None, None)),
        "mask": ({}, (plans["bypass"], None)),
        "mask of other numbers": ({}, (plans["other numbers"], None)),
        "mask without": ({}, ("1", None)),
    }
    assert ours.worker.call(cross, tiny, TOKENS, tmp_path, contexts) == []


def test_a_state_goes_on_in_another_process_with_the_same_plan(
    ours: Build, tiny: Path, plan_of: PlanOf, tmp_path: Path
) -> None:
    """The mark in a state depends on the file alone."""
    plan = plan_of("1-2", linear(1, 2))
    copy = plan.replace(".gguf", "-copy.gguf")
    shutil.copyfile(plan[1:], copy[1:])
    state, expected = ours.worker.call(saved, tiny, {"skip.plan": plan})
    assert np.array_equal(ours.worker.fresh(gone_on, tiny, {"skip.plan": copy}, state), expected)


def saved(lib: Library, path: Path, overrides: Override) -> tuple[bytes, np.ndarray]:
    ctx: Context = lib.model(path, overrides).context(n_ctx=64)
    ctx.decode(TOKENS[:5])
    state = ctx.save("data", Path())
    return state, ctx.decode(TOKENS[5:8])


def gone_on(lib: Library, path: Path, overrides: Override, state: bytes) -> np.ndarray:
    ctx = lib.model(path, overrides).context(n_ctx=64)
    assert ctx.restore("data", Path(), state)
    return ctx.decode(TOKENS[5:8])


def test_a_prefix_of_another_bypass_is_evaluated_again(
    make: Callable[..., Any], tiny: Path, plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = plan_of("1-2", linear(1, 2)), plan_of("1-2", linear(1, 2, seed=2))
    llm = make(tiny)
    counter = Counter(llm, monkeypatch)
    prompt = llm.tokenize(b"The first train left the harbour town before sunrise, and nobody")

    def evaluated(mask: str | None) -> int:
        llm.set_mask(mask)
        llm(prompt, max_tokens=1, temperature=0.0)
        return counter.take()

    n = len(prompt)
    assert [evaluated(mask) for mask in (one, one, two, "1-2", None, None, one)] == [n, 1, n, n, n, 1, n]
    assert llm.mask == (1, 2)
    with pytest.raises(ValueError, match=r"mask: '@nowhere\.gguf': the file cannot be read"):
        llm.set_mask("@nowhere.gguf")
    assert llm.mask == (1, 2)


def test_the_memory_of_a_mask_goes_with_it(make: Callable[..., Any], tiny: Path, plan_of: PlanOf) -> None:
    bypass = linear(1, 2)
    plan = plan_of("1-2", bypass)
    for options in ({}, {"dry_run": True}):
        llm = make(tiny, **options)
        without = llm.memory()["CPU"].weights
        size = bypass.n_bytes
        for mask, n_bytes in ((plan, size), (plan, size), ("1-2", 0), (plan, size), (None, 0)):
            llm.set_mask(mask)
            assert (llm.memory()["CPU"].weights - without) * 2**20 == n_bytes
