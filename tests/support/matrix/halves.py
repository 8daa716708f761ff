"""Halves of blocks left out of every architecture, against the unpatched library on a file whose last
products of those halves are zero.

`PYTHONPATH=tests python -m support.matrix.halves [MODEL...]` prints what came of each set.
"""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from support.matrix.arch_cases import EMBEDDINGS, Set, reference
from support.matrix.arch_files import Model, generated, make, write
from support.matrix.arch_oracle import writes
from support.matrix.arch_run import FLASHES, outcomes

from comparison import builds
from comparison.builds import Build
from comparison.libllama import Library, LlamaError

LAST = {
    "attn": re.compile(r"(?:vis_)?attn_o(?:ut(?:put)?(?:_[ab])?)?\..*|shortconv\.out_proj.*"),
    "ffn": re.compile(r"(?:vis_|ffn_)down(?!.*norm).*|channel_mix_value.*"),
}
Units = dict[str, set[int]]  # by half, the blocks; "": whole ones
Reasons = dict[str, list[str]]  # by half, why each block's cannot go alone, "" where it can


def spec(units: Units) -> str:
    """Return the text of a set."""
    items = []
    for half, blocks in units.items():
        for first in sorted(il for il in blocks if il - 1 not in blocks):
            last = next(il for il in range(first, max(blocks) + 1) if il + 1 not in blocks)
            items.append((f"{first}-{last}" if last > first else str(first)) + (half and f":{half}"))
    return ",".join(items)


def zeroed(model: Model, path: Path, units: Units) -> Path:
    """Write the model with the last products of the halves zero, and what whole blocks add to the stream."""

    def change(name: str, data: np.ndarray) -> np.ndarray:
        match = re.match(r"(?:enc\.)?blk\.(\d+)\.(.*)", name)
        if match is None:
            return data
        il, part = int(match[1]), match[2]
        gone = any(il in units.get(half, ()) and last.fullmatch(part) for half, last in LAST.items())
        return np.zeros_like(data) if gone or (il in units.get("", ()) and writes(part, model.arch)) else data

    return write(path, model.arch, model.metadata, {n: change(n, t) for n, t in model.tensors.items()})


def sets(model: Model, *, every: bool) -> list[Units]:
    """The sets of the matrix, or a few of them."""
    n = model.n_layer
    blocks = set(range(n))
    rng = random.Random(model.name)
    mixes: list[Units] = [
        {half: {il for il in blocks if rng.random() < 0.4} for half in LAST} for _ in range(3)
    ]
    if reference(model, Set("", (n // 2,))) == "zeroed":
        mixes[0][""] = {n // 2}
        mixes[0] = {half: mixes[0][half] - (mixes[0][""] if half else set()) for half in ("", *LAST)}
    if not every:
        return [{"attn": blocks}, {"ffn": blocks}, mixes[0]]
    found: list[Units] = []
    for half in LAST:
        found += [{half: {il}} for il in blocks]
        found += [{half: set(range(1, n, 2))}, {half: blocks}]
    return [units for units in [*found, {"attn": blocks, "ffn": {n // 2}}, *mixes] if any(units.values())]


def refusals(lib: Library, path: Path, specs: list[str]) -> list[str]:
    """Why each set cannot be left out, before loading or as a mask; "" where it can."""
    ctx = lib.model(path, load_mode="none", n_gpu_layers=0).context(n_ctx=64)
    found = []
    for text in specs:
        done = lib.c.llama_skip_check(str(path).encode(), text.encode(), None, b"set", b"scale")
        found.append("" if done else str(lib.c.llama_skip_error().decode()))
        if done:
            try:
                ctx.mask(text)
            except LlamaError as err:
                found[-1] = str(err)
    ctx.close()
    return found


def reasons(ours: Build, path: Path, n: int) -> Reasons:
    """Return why each half of each block of a file cannot go alone."""
    said = {half: ours.worker.call(refusals, path, [f"{il}:{half}" for il in range(n)]) for half in LAST}
    return {
        half: [re.sub(r"blk\.\d+\.", "", text.rpartition(": ")[2]) for text in texts]
        for half, texts in said.items()
    }


def column(found: list[str]) -> str:
    """Return what the table of architectures says of one half."""
    refused = [il for il, reason in enumerate(found) if reason]
    if not refused:
        return "all"
    why = "; ".join(dict.fromkeys(reason for reason in found if reason))
    return f"none: {why}" if len(refused) == len(found) else f"all but {', '.join(map(str, refused))}: {why}"


def check(stock: Build, ours: Build, model: Model, path: Path, *, every: bool) -> dict[str, str]:
    """Return by set why it was refused, "" for equal bit for bit at load and as a mask.

    Args:
        stock, ours: the libraries.
        model: one of the matrix.
        path: its file; the reference is written beside it.
        every: all sets, not a few.
    """
    options = {"embeddings": model.arch in EMBEDDINGS, "flashes": FLASHES}
    alone = reasons(ours, path, model.n_layer)
    found: dict[str, str] = {}
    for units in sets(model, every=every):
        text = spec(units)
        override = {"skip.layers": text[:127], "skip.layers.1": text[127:]}  # as long as one can be
        loaded = ours.worker.call(outcomes, path, {k: v for k, v in override.items() if v}, **options)[0]
        masked = ours.worker.call(outcomes, path, masks=[text], **options)[0]
        refused = [rows for rows in (*loaded, *masked) if isinstance(rows, str)]
        if refused:
            assert len(refused) == 2 * len(FLASHES), f"{text}: refused in one way alone: {refused[0]}"
            assert "cannot" in refused[0], refused[0]
            assert any(alone[half][il] for half in LAST for il in units.get(half, ())), (
                f"{text}: {refused[0]}"
            )
            found[text] = refused[0].strip()
            continue
        file = zeroed(model, path.with_name("reference.gguf"), units)
        expected = stock.worker.call(outcomes, file, **options)[0]
        for way, rows in (("load", loaded), ("mask", masked)):
            for got, wanted in zip(rows, expected, strict=True):
                assert not isinstance(wanted, str), f"{text}: the reference says {wanted}"
                assert np.array_equal(got, wanted), f"{text}, {way}: off by {np.abs(got - wanted).max()}"
        found[text] = ""
    return found


def main() -> None:
    """Print what came of each set of the models that are named, of all of them without names."""
    from support.matrix.architectures import MODELS

    stock, ours = builds.stock(), builds.ours()
    with TemporaryDirectory() as name:
        folder = Path(name)
        bases = generated(stock, folder)
        for wanted in sys.argv[1:] or MODELS:
            model = make(stock, folder, bases, wanted)
            path = write(folder / "model.gguf", model.arch, model.metadata, model.tensors)
            try:
                alone = reasons(ours, path, model.n_layer)
                found = check(stock, ours, model, path, every=True)
            except Exception as err:
                print(f"{wanted}: ERROR {type(err).__name__}: {err}", flush=True)
                continue
            equal = list(found.values()).count("")
            columns = " | ".join(f"{half}: {column(texts)}" for half, texts in alone.items())
            print(f"{wanted}: {equal} of {len(found)} equal | {columns}", flush=True)
    stock.worker.close()
    ours.worker.close()


if __name__ == "__main__":
    main()
