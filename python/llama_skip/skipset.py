"""The Python forms of a skip set and its scales, as the text that llama.cpp's side parses and checks."""

import os
import re
from collections.abc import Iterable, Mapping
from operator import index
from typing import Literal, get_args

from llama_skip import _core
from llama_skip.errors import ArgumentError

Half = Literal["attn", "ffn"]
HALVES: tuple[Half, ...] = get_args(Half)
Unit = int | tuple[int, Half]  # a block, or a half of one
Layers = str | Iterable[Unit] | Mapping[Half, Iterable[int]]
Scale = float | str | Mapping[int, float]


def layers_text(layers: Layers | None, name: str) -> str:
    """Return `layers` in the form of `--skip-layers`.

    Args:
        layers: a text as for the flag; blocks in the file's numbering, a pair (10, "attn") for the attention
            of one alone; blocks by half, {"attn": [10, 11], "ffn": [25]}; or None for none given.
        name: the argument's name, for errors.

    Returns:
        "" for None, "none" for no block, else the text.

    Raises:
        ValueError: an empty text, or another half.
        TypeError: a block that is not an int.
    """
    if layers is None:
        return ""
    if isinstance(layers, str):
        if not layers.strip():
            raise ArgumentError(name, "empty, expected N, N-M or N-M+STEP, separated by commas, or none")
        _check_text(layers, name)
        return layers
    if isinstance(layers, bytes) or not isinstance(layers, Iterable):
        raise TypeError(f"{name}: expected a text or blocks, not {type(layers).__name__}")
    if isinstance(layers, Mapping):
        layers = [(il, half) for half, blocks in layers.items() for il in blocks]
    return ",".join(_item(item, name) for item in layers) or "none"


def scale_text(scale: Scale | None, name: str) -> str:
    """Return `scale` in the form of `--skip-scale`.

    Args:
        scale: one factor for every gap, a text as for the flag, a factor by the first block of its gap, or
            None.
        name: the argument's name, for errors.

    Returns:
        "" for None or no factor, else the text, with every digit of a float.

    Raises:
        ValueError: an empty text.
        TypeError: a block that is not an int or a factor that is not a number.
    """
    if scale is None:
        return ""
    if isinstance(scale, str):
        if not scale.strip():
            raise ArgumentError(name, "empty, expected A or N:A, separated by commas")
        _check_text(scale, name)
        return scale
    if isinstance(scale, Mapping):
        return ",".join(f"{_block(il, name)}:{_factor(a, name)!r}" for il, a in scale.items())
    return repr(_factor(scale, name))


def ranges_text(units: Iterable[Unit]) -> str:
    """Return blocks and halves in the shortest form of `--skip-layers`, as "13-14,25,3:attn"; "" for none.

    The half of a block that is there too is the block.
    """
    found = set(units)
    blocks = set(whole(found))
    halved = [unit for unit in found if not isinstance(unit, int) and unit[0] not in blocks]
    items = _items(blocks, "")
    for half in HALVES:
        items += _items((unit[0] for unit in halved if unit[1] == half), f":{half}")
    return ",".join(items)


def _items(blocks: Iterable[int], end: str) -> list[str]:
    ends = ((gap.start, gap.stop - 1) for gap in gaps(blocks))
    return [(str(first) if first == last else f"{first}-{last}") + end for first, last in ends]


def unit_text(unit: Unit) -> str:
    """Return a block or half as in a skip set: "12", "12:attn"."""
    return str(unit) if isinstance(unit, int) else f"{unit[0]}:{unit[1]}"


def whole(units: Iterable[Unit]) -> list[int]:
    """Return the blocks among blocks and halves, as they come."""
    return [unit for unit in units if isinstance(unit, int)]


def block_of(unit: Unit) -> int:
    """Return the block that a unit is, or is a half of."""
    return unit if isinstance(unit, int) else unit[0]


def parse_layers(text: str) -> list[Unit]:
    """Return what a text names that llama.cpp's side has written or accepted; "" and "none": nothing."""
    found: list[Unit] = []
    for match in re.finditer(r"(\d+)(?:-(\d+)(?:\+(\d+))?)?(?::(attn|ffn))?", text):
        first, last, step, half = match.groups()
        blocks = range(int(first), int(last or first) + 1, int(step or 1))
        found += [(il, half) for il in blocks] if half else blocks  # type: ignore[misc]
    return found


def gaps(blocks: Iterable[int]) -> list[range]:
    """Return the runs of consecutive blocks, in order."""
    runs: list[range] = []
    for il in sorted(set(blocks)):
        if runs and il == runs[-1].stop:
            runs[-1] = range(runs[-1].start, il + 1)
        else:
            runs.append(range(il, il + 1))
    return runs


def parse_scale(text: str) -> dict[int, float]:
    """Return the factors of a text "N:A,..." by the first block of their gap."""
    pairs = (item.split(":") for item in text.split(",") if item)
    return {int(il): float(a) for il, a in pairs}


def _check_text(text: str, name: str) -> None:
    if "\0" in text:
        raise ArgumentError(name, f"{text!r} has a NUL")


def _item(item: Unit, name: str) -> str:
    if not isinstance(item, tuple):
        return str(_block(item, name))
    il, half = item
    if half not in HALVES:
        raise ArgumentError(name, f"{half!r} is no half of a block, expected attn or ffn")
    return unit_text((_block(il, name), half))


def _block(il: int, name: str) -> int:
    if isinstance(il, bool):
        raise TypeError(f"{name}: a block is an int, not bool")
    try:
        block = index(il)
    except TypeError:
        raise TypeError(f"{name}: a block is an int, not {type(il).__name__}") from None
    if block < 0:
        raise ArgumentError(name, f"block {block} is out of range, blocks are numbered from 0")
    return block


def _factor(a: float, name: str) -> float:
    try:
        return float(a)
    except TypeError:
        raise TypeError(f"{name}: a factor is a number, not {type(a).__name__}") from None


def resolve(model: str | os.PathLike[str], layers: str, scale: str) -> tuple[list[Unit], str]:
    """Return what a text leaves out of a model, and the factors of its gaps that are not 1.

    Raises:
        ValueError: a set or factors that llama.cpp's side refuses, with its reason.
        llama_skip.ModelLoadError: the model cannot be loaded.
    """
    _core.check_skip(os.fsencode(model), layers, scale, "skip_layers", "skip_scale")
    params = _core.ModelParams()
    params.no_alloc, params.n_gpu_layers = True, 0
    params.skip_layers, params.skip_scale = layers, scale
    loaded = _core.Model(os.fsencode(model), params)
    return parse_layers(loaded.skip_layers), loaded.skip_scale
