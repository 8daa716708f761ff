"""The Python forms of a skip set and its scales, as the text that llama.cpp's side parses and checks."""

import re
from collections.abc import Iterable, Mapping
from operator import index

Layers = str | Iterable[int]
Scale = float | str | Mapping[int, float]


def layers_text(layers: Layers | None, name: str) -> str:
    """Return `layers` in the form of `--skip-layers`.

    Args:
        layers: a text as for the flag, blocks in the file's numbering, or None for none given.
        name: the argument's name, for errors.

    Returns:
        "" for None, "none" for no block, else the text.

    Raises:
        ValueError: an empty text.
        TypeError: a block that is not an int.
    """
    if layers is None:
        return ""
    if isinstance(layers, str):
        if not layers.strip():
            raise ValueError(f"{name}: empty, expected N, N-M or N-M+STEP, separated by commas, or none")
        return layers
    if isinstance(layers, bytes) or not isinstance(layers, Iterable):
        raise TypeError(f"{name}: expected a text or blocks, not {type(layers).__name__}")
    blocks = [_block(il, name) for il in layers]
    return ",".join(map(str, blocks)) or "none"


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
            raise ValueError(f"{name}: empty, expected A or N:A, separated by commas")
        return scale
    if isinstance(scale, Mapping):
        return ",".join(f"{_block(il, name)}:{_factor(a, name)!r}" for il, a in scale.items())
    return repr(_factor(scale, name))


def ranges_text(blocks: Iterable[int]) -> str:
    """Return blocks in the shortest form of `--skip-layers`, as "13-14,25"; "" for no block."""
    runs: list[list[int]] = []
    for il in sorted(blocks):
        if runs and il == runs[-1][1] + 1:
            runs[-1][1] = il
        else:
            runs.append([il, il])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def parse_scale(text: str) -> dict[int, float]:
    """Return the factors of a text "N:A,..." by the first block of their gap."""
    pairs = (item.split(":") for item in text.split(",") if item)
    return {int(il): float(a) for il, a in pairs}


def _block(il: int, name: str) -> int:
    if isinstance(il, bool):
        raise TypeError(f"{name}: a block is an int, not bool")
    try:
        block = index(il)
    except TypeError:
        raise TypeError(f"{name}: a block is an int, not {type(il).__name__}") from None
    if block < 0:
        raise ValueError(f"{name}: block {block} is out of range, blocks are numbered from 0")
    return block


def _factor(a: float, name: str) -> float:
    try:
        return float(a)
    except TypeError:
        raise TypeError(f"{name}: a factor is a number, not {type(a).__name__}") from None


def blocks_of(text: str) -> list[int]:
    """Return the blocks of a text that llama.cpp's side has accepted, in order."""
    blocks: set[int] = set()
    for item in re.split("[,;]", "" if text.strip() == "none" else text):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+)(?:\+(\d+))?)?\s*", item)
        if match:
            first, last, step = (int(part) if part else None for part in match.groups())
            assert first is not None
            blocks.update(range(first, (first if last is None else last) + 1, step or 1))
    return sorted(blocks)


def text_of(blocks: Iterable[int]) -> str:
    """Return blocks as a text with ranges, "13-14,25"."""
    runs: list[list[int]] = []
    for il in sorted(set(blocks)):
        if runs and il == runs[-1][-1] + 1:
            runs[-1].append(il)
        else:
            runs.append([il])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
