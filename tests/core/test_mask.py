"""The run-time mask.

Oracle: keys and values of a token depend on the mask it was decoded under, and a masked block's are never
read again. So the unpatched library gets there by carrying its state from file to file, each with other
blocks made identities.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.shared.masks import REFUSED, Steps, across_files, across_masks

from comparison.builds import Build
from comparison.libllama import Context, Library, LlamaError, Override
from comparison.oracle import expand, logits, skip


@pytest.mark.parametrize("flash", ["off", "on"])
def test_masks_that_grow_between_decodes(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int], zeroed: Any, flash: str
) -> None:
    steps: Steps = [
        (None, slice(0, 12)),
        ("20", slice(12, 13)),
        ("20", slice(13, 14)),
        ("13-14,20", slice(14, 24)),
        ("0,13-14,20,29", slice(24, 25)),
        ("0,13-14,20,29", slice(25, 40)),
    ]
    files = {m: zeroed(expand(m)) if m else smollm2 for m, _ in steps}
    expected = stock.worker.call(across_files, files, tokens, steps, flash)
    found = ours.worker.call(across_masks, smollm2, tokens, steps, flash)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert np.array_equal(a, b), steps[i]
    # the masks make a difference
    assert not np.array_equal(found[1], ours.worker.call(logits, smollm2, tokens[:13], n_single=1)[12:])


def test_masks_on_top_of_a_set(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int], zeroed: Any
) -> None:
    steps: Steps = [("13-14", slice(0, 12)), ("13-14,20", slice(12, 13)), ("13-14,20", slice(13, 20))]
    files = {m: zeroed(expand(m)) for m, _ in steps if m}
    expected = stock.worker.call(across_files, files, tokens, steps, "off")
    own: Steps = [(None, steps[0][1]), ("20", steps[1][1]), ("14,20", steps[2][1])]
    found = ours.worker.call(across_masks, smollm2, tokens, own, "off", skip("13-14"))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("layers", "scale"), [("13-14,25", None), ("0,29", None), ("13-14,25", "13:0.7,25:1.2")]
)
def test_a_mask_from_the_start_is_a_set(
    ours: Build, smollm2: Path, tokens: list[int], layers: str, scale: str | None
) -> None:
    expected = ours.worker.call(logits, smollm2, tokens, skip(layers, scale or ""))
    found = ours.worker.call(logits, smollm2, tokens, mask=(layers, scale))
    assert np.array_equal(found, expected)


def test_a_scale_belongs_to_its_gap(ours: Build, smollm2: Path, tokens: list[int]) -> None:
    """A gap that the mask changes is the identity, unless the mask brings a scale."""
    cases = [
        (skip("13", "0.5"), ("14", None), skip("13-14")),
        (skip("13", "0.5"), ("12", None), skip("12-13")),
        (skip("13", "0.5"), ("14", "13:0.7"), skip("13-14", "0.7")),
        (skip("13", "0.5"), ("20", None), skip("13,20", "13:0.5")),
        (skip("13", "0.5"), ("20", "20:0.7"), skip("13,20", "13:0.5,20:0.7")),
        (skip("13", "0.5"), ("none", "13:0.9"), skip("13", "0.9")),
        (skip("13,15", "13:0.5,15:0.6"), ("14", None), skip("13-15")),
    ]
    for overrides, mask, same_as in cases:
        expected = ours.worker.call(logits, smollm2, tokens[:20], same_as)
        found = ours.worker.call(logits, smollm2, tokens[:20], overrides, mask=mask)
        assert np.array_equal(found, expected), (overrides, mask)


def toggled(lib: Library, path: Path, tokens: list[int], masks: Sequence[str | None]) -> list[np.ndarray]:
    model = lib.model(path)
    ctx = model.context()
    found = []
    for mask in masks:
        ctx.c.llama_memory_clear(ctx.memory, False)
        ctx.mask(mask)
        found.append(
            np.concatenate([ctx.decode(tokens[:6]), ctx.decode(tokens[6:7]), ctx.decode(tokens[7:8])])
        )
    ctx.close()
    model.close()
    return found


def test_depth_changes_back_and_forth_in_one_context(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int], zeroed: Any
) -> None:
    """Graphs of the same shape that differ in the mask alone are not taken for each other."""
    masks = [None, "13", "14", None, "13-14", "13", "none"]
    found = ours.worker.call(toggled, smollm2, tokens, masks)
    for mask, logit in zip(masks, found, strict=True):
        file = zeroed(expand(mask)) if mask and mask != "none" else smollm2
        expected = stock.worker.call(logits, file, tokens[:8], n_single=2)
        assert np.array_equal(logit, expected), mask


def draft_and_verify(lib: Library, path: Path, tokens: list[int], mask: str | None) -> np.ndarray:
    model = lib.model(path)
    ctx = model.context()
    ctx.decode(tokens[:12])
    if mask:
        ctx.mask(mask)
    for t in tokens[12:16]:
        ctx.decode([t])
    if mask:
        ctx.mask(None)
    assert lib.c.llama_memory_seq_rm(ctx.memory, 0, 12, -1)
    verified = ctx.decode(tokens[12:17])
    more = ctx.decode(tokens[17:18])
    ctx.close()
    model.close()
    return np.concatenate([verified, more])


def test_draft_at_less_depth_and_verify_at_full_depth_on_one_cache(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int]
) -> None:
    expected = stock.worker.call(draft_and_verify, smollm2, tokens, None)
    found = ours.worker.call(draft_and_verify, smollm2, tokens, "5-9,20-24")
    assert np.array_equal(found, expected)


def decodes(ctx: Context, tokens: list[int], **where: Any) -> bool:
    """Whether a decode is let through; a refusal is -1, says why and changes nothing."""
    pos_max = ctx.c.llama_memory_seq_pos_max
    before = [pos_max(ctx.memory, seq) for seq in range(4)]
    try:
        ctx.decode(tokens, **where)
    except LlamaError as error:
        assert str(error).startswith(REFUSED)
        assert "were masked" in "".join(ctx.lib.log)
        assert [pos_max(ctx.memory, seq) for seq in range(4)] == before
        return False
    return True


def forbidden(lib: Library, path: Path, tokens: list[int], overrides: Override) -> list[bool]:
    ctx = lib.model(path, overrides).context()
    rm = lib.c.llama_memory_seq_rm
    ctx.decode(tokens[:8])
    ctx.mask("13-14")
    ctx.decode(tokens[8:12])
    facts = []
    for mask in (None, "13", "14", "20"):
        ctx.mask(mask)
        facts.append(decodes(ctx, tokens[12:13]))
    assert facts == [False] * 4
    ctx.mask("13-15")
    facts.append(decodes(ctx, tokens[12:13]))  # tokens 0-11 keep what they have of 15, 12 lacks it
    ctx.mask("13-14")
    facts.append(decodes(ctx, tokens[13:14]))
    rm(ctx.memory, 0, 12, -1)
    facts.append(decodes(ctx, tokens[12:13]))
    rm(ctx.memory, 0, 10, -1)
    ctx.mask(None)
    facts.append(decodes(ctx, tokens[10:11]))  # 8 and 9 are still there
    rm(ctx.memory, 0, 8, -1)
    facts.append(decodes(ctx, tokens[8:9]))
    return facts[4:]


@pytest.mark.parametrize("overrides", [{}, skip("25")], ids=str)
def test_a_block_is_not_run_over_tokens_that_lack_it(
    ours: Build, smollm2: Path, tokens: list[int], overrides: dict[str, str]
) -> None:
    facts = ours.worker.call(forbidden, smollm2, tokens, overrides)
    assert facts == [True, False, True, False, True]


def after_forbidden(lib: Library, path: Path, tokens: list[int], *, try_it: bool) -> np.ndarray:
    ctx = lib.model(path).context()
    ctx.decode(tokens[:8])
    if try_it:
        ctx.mask("13-14")
        ctx.decode(tokens[8:12])
        ctx.mask(None)
        assert not decodes(ctx, tokens[12:14])
    else:
        ctx.decode(tokens[8:12])
    lib.c.llama_memory_seq_rm(ctx.memory, 0, 8, -1)
    return ctx.decode(tokens[8:14])


def test_what_was_refused_is_right_after_the_tokens_are_removed(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int]
) -> None:
    expected = stock.worker.call(after_forbidden, smollm2, tokens, try_it=False)
    assert np.array_equal(ours.worker.call(after_forbidden, smollm2, tokens, try_it=True), expected)


def sequences(lib: Library, path: Path, tokens: list[int], kv_unified: bool) -> dict[str, bool]:
    c = lib.c
    model = lib.model(path)
    facts = {}

    def fresh() -> Context:
        """Sequence 0: 0-5 full and 6-9 masked; sequence 1: 0-5 full; the mask is lifted."""
        ctx = model.context(n_seq_max=4, kv_unified=kv_unified)
        ctx.decode(tokens[:6], seq=0)
        ctx.decode(tokens[:6], seq=1)
        ctx.mask("13")
        ctx.decode(tokens[6:10], seq=0)
        ctx.mask(None)
        return ctx

    ctx = fresh()
    facts["the other sequence"] = decodes(ctx, tokens[6:7], seq=1)
    facts["the masked sequence"] = decodes(ctx, tokens[10:11], seq=0)
    c.llama_memory_seq_keep(ctx.memory, 1)
    facts["the masked sequence, not kept"] = decodes(ctx, tokens[:1], seq=0)
    facts["the kept sequence"] = decodes(ctx, tokens[7:8], seq=1)

    ctx = fresh()
    c.llama_memory_seq_cp(ctx.memory, 0, 2, -1, -1)
    facts["a copy"] = decodes(ctx, tokens[10:11], seq=2)
    c.llama_memory_seq_rm(ctx.memory, 0, -1, -1)
    facts["a copy whose source is gone"] = decodes(ctx, tokens[10:11], seq=2)
    facts["the source, removed"] = decodes(ctx, tokens[:1], seq=0)
    c.llama_memory_seq_rm(ctx.memory, 2, 6, -1)
    facts["a copy without its masked tokens"] = decodes(ctx, tokens[6:7], seq=2)

    ctx = fresh()
    if kv_unified:  # a part of a sequence can be copied within one stream only
        c.llama_memory_seq_cp(ctx.memory, 0, 2, 0, 6)
        facts["a copy of full tokens"] = decodes(ctx, tokens[6:7], seq=2)
        c.llama_memory_seq_cp(ctx.memory, 0, 3, 0, 7)
        facts["a copy with one masked token"] = decodes(ctx, tokens[7:8], seq=3)
    else:
        c.llama_memory_seq_cp(ctx.memory, 1, 2, -1, -1)
        facts["a copy of full tokens"] = decodes(ctx, tokens[6:7], seq=2)

    ctx = fresh()
    c.llama_memory_clear(ctx.memory, False)
    facts["cleared"] = decodes(ctx, tokens[:1], seq=0)

    ctx = fresh()
    c.llama_memory_seq_rm(ctx.memory, 0, 2, 4)
    c.llama_memory_seq_add(ctx.memory, 0, 4, -1, -2)  # the masked ones are 4-7 now
    c.llama_memory_seq_rm(ctx.memory, 0, 6, -1)
    facts["shifted, half removed"] = decodes(ctx, tokens[10:11], pos=6, seq=0)
    c.llama_memory_seq_rm(ctx.memory, 0, 4, -1)
    facts["shifted, removed"] = decodes(ctx, tokens[10:11], pos=4, seq=0)

    ctx = fresh()
    c.llama_memory_seq_rm(ctx.memory, 0, 0, 6)
    c.llama_memory_seq_add(ctx.memory, 0, 6, -1, -6)
    facts["shifted to the front"] = decodes(ctx, tokens[10:11], pos=4, seq=0)
    c.llama_memory_seq_rm(ctx.memory, 0, 0, 4)
    facts["shifted to the front, removed"] = decodes(ctx, tokens[10:11], pos=0, seq=0)

    ctx = fresh()
    c.llama_memory_seq_div(ctx.memory, 0, 0, -1, 2)  # the masked ones are 3, 3, 4, 4 now
    facts["divided"] = decodes(ctx, tokens[10:11], pos=5, seq=0)
    c.llama_memory_seq_rm(ctx.memory, 0, 3, -1)
    facts["divided, removed"] = decodes(ctx, tokens[10:11], pos=3, seq=0)

    if kv_unified:
        ctx = model.context(n_seq_max=4, kv_unified=True)
        ctx.mask("13")
        ctx.decode(tokens[:4], seq=[0, 1])
        ctx.mask(None)
        facts["one of two that share masked tokens"] = decodes(ctx, tokens[4:5], seq=1)
        c.llama_memory_seq_rm(ctx.memory, -1, -1, -1)
        facts["all removed"] = decodes(ctx, tokens[:1], seq=[0, 1])
    return facts


@pytest.mark.parametrize("kv_unified", [True, False])
def test_the_rule_follows_each_sequence(
    ours: Build, smollm2: Path, tokens: list[int], kv_unified: bool
) -> None:
    expected = {
        "the other sequence": True,
        "the masked sequence": False,
        "the masked sequence, not kept": True,
        "the kept sequence": True,
        "a copy": False,
        "a copy whose source is gone": False,
        "the source, removed": True,
        "a copy without its masked tokens": True,
        "a copy of full tokens": True,
        "a copy with one masked token": False,
        "cleared": True,
        "shifted, half removed": False,
        "shifted, removed": True,
        "shifted to the front": False,
        "shifted to the front, removed": True,
        "divided": False,
        "divided, removed": True,
        "one of two that share masked tokens": False,
        "all removed": True,
    }
    facts = ours.worker.call(sequences, smollm2, tokens, kv_unified)
    assert facts == {name: expected[name] for name in facts}
    assert len(facts) == len(expected) - (0 if kv_unified else 3)


def two_sequences(lib: Library, path: Path, tokens: list[int], mask: str | None) -> np.ndarray:
    model = lib.model(path)
    ctx = model.context(n_seq_max=2, kv_unified=True)
    ctx.decode(tokens[:6], seq=0)
    ctx.decode(tokens[6:12], seq=1)
    if mask:
        ctx.mask(mask)
    ctx.decode(tokens[12:14], seq=0)
    if mask:
        ctx.mask(None)
    full = ctx.decode(tokens[14:18], seq=1)
    lib.c.llama_memory_seq_rm(ctx.memory, 0, 6, -1)
    again = ctx.decode(tokens[12:14], seq=0)
    ctx.close()
    model.close()
    return np.concatenate([full, again])


def test_a_masked_sequence_does_not_touch_another(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int]
) -> None:
    expected = stock.worker.call(two_sequences, smollm2, tokens, None)
    assert np.array_equal(ours.worker.call(two_sequences, smollm2, tokens, "13-14"), expected)


def bad_masks(lib: Library, path: Path, tokens: list[int]) -> list[tuple[str, list[int]]]:
    model = lib.model(path, skip("13"))
    ctx = model.context()
    ctx.mask("20", "20:0.5")
    first = ctx.decode(tokens[:8])
    facts = []
    for layers, scale in [
        ("30", None),
        ("0-29", None),
        ("0-12,14-29", None),
        ("", None),
        ("5-3", None),
        ("7-9+0", None),
        ("x", None),
        ("21", "nan"),
        ("21", "5:0.5"),
        ("21", ""),
    ]:
        try:
            ctx.mask(layers, scale)
            facts.append((f"{layers!r} {scale!r} was taken", ctx.masked()))
        except LlamaError as error:
            facts.append((str(error), ctx.masked()))
    lib.c.llama_memory_clear(ctx.memory, False)
    assert np.array_equal(ctx.decode(tokens[:8]), first)
    ctx.mask(None)
    facts.append(("none", ctx.masked()))
    return facts


def test_a_bad_mask_is_refused_and_the_old_one_stays(ours: Build, smollm2: Path, tokens: list[int]) -> None:
    *refusals, lifted = ours.worker.call(bad_masks, smollm2, tokens)
    reasons = [
        "mask: block 30 is out of range, the model has blocks 0-29",
        "mask: every block is left out",
        "mask: every block is left out",
        "mask: empty",
        "mask: reversed range '5-3'",
        "mask: step 0 in '7-9+0'",
        "mask: malformed item 'x'",
        "mask scale: the scale 'nan' is not finite",
        "mask scale: no gap begins at block 5",
        "mask scale: empty",
    ]
    for reason, (message, masked) in zip(reasons, refusals, strict=True):
        assert message.startswith(reason)
        assert masked == [13, 20]
    assert lifted == ("none", [13])
