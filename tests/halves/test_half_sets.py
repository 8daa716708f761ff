"""Halves of blocks left out of SmolLM2: at load, and by masks that change from token to token.

tests/matrix/test_half_architectures.py has every architecture, tests/core/test_load.py and
tests/tools/test_devices.py what is read and sent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.matrix.arch_files import Base, make, write
from support.shared.masks import REFUSED, Steps, across_files, across_masks

from comparison.builds import Build
from comparison.libllama import Library, LlamaError
from comparison.oracle import logits, skip

SETS = ["3-20:attn", "0-29:ffn", "0-29:attn,4:ffn", "25,13-14:attn,0-9:ffn,29:ffn", "7:attn,7:ffn"]


@pytest.mark.parametrize("flash", ["off", "on"])
@pytest.mark.parametrize("spec", SETS)
def test_a_half_adds_nothing_to_the_stream(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int], zeroed: Any, spec: str, flash: str
) -> None:
    expected = stock.worker.call(logits, zeroed(spec), tokens[:24], flash=flash)
    for given in ({"overrides": skip(spec)}, {"mask": (spec, None)}):
        assert np.array_equal(ours.worker.call(logits, smollm2, tokens[:24], flash=flash, **given), expected)


def test_both_halves_of_a_block_are_the_block(ours: Build, smollm2: Path, tokens: list[int]) -> None:
    """Of an architecture whose blocks have no third branch."""
    expected = ours.worker.call(logits, smollm2, tokens[:24], skip("7"))
    assert np.array_equal(ours.worker.call(logits, smollm2, tokens[:24], skip("7:attn,7:ffn")), expected)


@pytest.mark.parametrize("flash", ["off", "on"])
def test_feed_forwards_come_and_go_from_token_to_token(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int], zeroed: Any, flash: str
) -> None:
    """One sequence, one cache: a feed-forward that was left out leaves keys and values whole."""
    masks = ["5-9:ffn", None, "20:ffn", "5-9:ffn,20:ffn", None, "0-29:ffn", "29:ffn", None, "5-9:ffn", None]
    steps: Steps = [(None, slice(0, 12)), ("5-9:ffn", slice(12, 20))]
    steps = [*steps, *((mask, slice(20 + i, 21 + i)) for i, mask in enumerate(masks))]
    files = {mask: zeroed(mask) if mask else smollm2 for mask, _ in steps}
    expected = stock.worker.call(across_files, files, tokens, steps, flash)
    found = ours.worker.call(across_masks, smollm2, tokens, steps, flash)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert np.array_equal(a, b), steps[i]
    # the masks make a difference, to later tokens too
    full = ours.worker.call(logits, smollm2, tokens[:30], n_single=10)
    assert not np.array_equal(found[-1], full[29:])


def test_attentions_only_go(stock: Build, ours: Build, smollm2: Path, tokens: list[int], zeroed: Any) -> None:
    """As whole blocks: there is nothing in the cache for tokens that an attention was left out for."""
    steps: Steps = [
        ("20:ffn", slice(0, 12)),
        ("3:attn", slice(12, 13)),
        ("3:attn,20:ffn", slice(13, 20)),
        ("3,4:attn", slice(20, 21)),
        ("3:attn,3:ffn,4-5:attn", slice(21, 30)),
    ]
    files = {mask: zeroed(mask) for mask, _ in steps if mask}
    expected = stock.worker.call(across_files, files, tokens, steps, "off")
    found = ours.worker.call(across_masks, smollm2, tokens, steps, "off")
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    for back in (None, "3:ffn", "4:attn"):
        with pytest.raises(LlamaError, match=REFUSED):
            ours.worker.call(across_masks, smollm2, tokens, [*steps[:2], (back, slice(13, 14))], "off")


def test_a_mask_on_top_of_halves(
    stock: Build, ours: Build, smollm2: Path, tokens: list[int], zeroed: Any
) -> None:
    own: Steps = [("14:ffn", slice(0, 12)), ("14", slice(12, 20)), ("14,20:attn", slice(20, 24))]
    loaded = "13:attn,25"
    files = {mask: zeroed(f"{loaded},{mask}") for mask, _ in own}
    expected = stock.worker.call(across_files, files, tokens, own, "off")
    found = ours.worker.call(across_masks, smollm2, tokens, own, "off", skip(loaded))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def several(lib: Library, path: Path, tokens: list[int], overrides: dict[str, str]) -> list[np.ndarray]:
    ctx = lib.model(path, overrides).context(n_seq_max=3, n_ctx=384)
    found = [ctx.decode(tokens[i : i + 6], seq=i) for i in range(3)]
    return found + [ctx.decode([tokens[20 + i]], seq=i, pos=6) for i in range(3)]


def test_several_sequences(stock: Build, ours: Build, smollm2: Path, tokens: list[int], zeroed: Any) -> None:
    spec = "25,13-14:attn,0-9:ffn"
    expected = stock.worker.call(several, zeroed(spec), tokens, {})
    found = ours.worker.call(several, smollm2, tokens, skip(spec))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def refusal(lib: Library, path: Path, spec: str) -> str:
    done = lib.c.llama_skip_check(str(path).encode(), spec.encode(), b"", b"LAYERS", b"SCALE")
    return "" if done else str(lib.c.llama_skip_error().decode())


def hybrid(stock: Build, folder: Path, bases: dict[str, Base]) -> Path:
    """Three kinds of blocks, each with one half: attention, a recurrent state, a feed-forward."""
    model = make(stock, folder, bases, "nemotron_h-dense")
    return write(folder / "hybrid.gguf", model.arch, model.metadata, model.tensors)


def test_halves_that_cannot_go_are_refused_before_loading(
    stock: Build, ours: Build, bases: dict[str, Base], tmp_path: Path
) -> None:
    path = hybrid(stock, tmp_path, bases)
    says = {
        spec: ours.worker.call(refusal, path, spec)
        for spec in ("0:attn", "1:attn", "2:attn", "0:ffn", "2:ffn")
    }
    assert says["0:attn"] == says["2:ffn"] == ""
    assert says["1:attn"].startswith("LAYERS: 1:attn cannot be left out: it keeps more than keys and values")
    assert says["2:attn"] == "LAYERS: 2:attn cannot be left out: the model has none there"
    assert says["0:ffn"] == "LAYERS: 0:ffn cannot be left out: the model has none there"


def test_disk_blocks_are_whole(ours: Build, smollm2: Path) -> None:
    done = ours.run("llama-completion", "-m", smollm2, "-n", 1, "--disk-layers", "3:attn")
    assert done.returncode != 0
    assert "--disk-layers: '3:attn' names halves of blocks, expected whole ones" in done.stderr


def test_the_python_forms(smollm2: Path, tokens: list[int]) -> None:
    from llama_skip import Llama

    forms: list[Any] = ["25,3-4:attn,9:ffn", [25, (3, "attn"), (4, "attn"), (9, "ffn"), (25, "ffn")]]
    units = (25, (3, "attn"), (4, "attn"), (9, "ffn"))
    found = []
    for form in forms:
        with Llama(smollm2, skip_layers=form, n_ctx=64, verbose=False) as llm:
            assert llm.skip_layers == llm.mask == units
            found.append(llm.logits(tokens[:8]))
    with Llama(smollm2, n_ctx=64, verbose=False) as llm:
        for form in (*forms, units):
            llm.set_mask(form)
            assert llm.skip_layers == () and llm.mask == units
            found.append(llm.logits(tokens[:8]))
            llm.reset()
        llm.set_mask({"attn": [3], "ffn": range(5, 7)})
        assert llm.mask == ((3, "attn"), (5, "ffn"), (6, "ffn"))
        for bad, words in (([(3, "foo")], "'foo' is no half"), ({"mlp": [3]}, "'mlp' is no half")):
            with pytest.raises(ValueError, match=words):
                llm.set_mask(bad)
        with pytest.raises(TypeError, match="a block is an int, not str"):
            llm.set_mask([("3", "attn")])
        assert llm.mask == ((3, "attn"), (5, "ffn"), (6, "ffn"))
    assert all(np.array_equal(logits, found[0]) for logits in found)
