"""How deep a request is answered: the masks of a context, and the tiers that name some of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from llama_skip import skipset
from llama_skip.errors import ArgumentError

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
SET = re.compile(r"none|\d+(-\d+)?")  # what the grammar of sets makes of such a text


@dataclass(frozen=True)
class Mask:
    """A mask as it was given, and what it is.

    Attributes:
        layers, scale: what brings it about, in the forms of the flags.
        text: all that it leaves out, the model's set among it; "" for nothing.
        tag: the same with what stands in the gaps; what has the same tag computes the same.
    """

    layers: str
    scale: str
    text: str
    tag: str

    @property
    def is_plain(self) -> bool:
        """Whether it has no factor and no bypass but the model's own."""
        return not self.scale and not self.layers.startswith(("auto:", "@"))

    @cached_property
    def without_cache(self) -> frozenset[int]:
        """The blocks that keep nothing of a token: the whole ones, and those without attention."""
        units = skipset.parse_layers(self.text)
        return frozenset(skipset.block_of(u) for u in units if isinstance(u, int) or u[1] != "ffn")

    @cached_property
    def _covered(self) -> frozenset[skipset.Unit]:
        units = skipset.parse_layers(self.text)
        halves = [(il, half) for il in skipset.whole(units) for half in skipset.HALVES]
        return frozenset([*units, *halves])

    def covers(self, other: Mask) -> bool:
        """Whether it leaves out all that `other` leaves out."""
        return other._covered <= self._covered


class Depth(NamedTuple):
    """What a request leaves out while its prompt is evaluated, and then; None: what is left out anyway."""

    prompt: Mask | None = None
    answer: Mask | None = None


IN_FORCE = Depth()


def tier_texts(tiers: Mapping[str, skipset.Layers] | None) -> dict[str, str]:
    """Return the sets of tiers as texts, by name.

    Raises:
        ValueError: a name that is none, or could be a set; an empty text.
        TypeError: something else than names and sets.
    """
    if tiers is None:
        return {}
    if not isinstance(tiers, Mapping):
        raise TypeError(f"tiers: expected sets by name, not {type(tiers).__name__}")
    found = {}
    for name, layers in tiers.items():
        if not isinstance(name, str):
            raise TypeError(f"tiers: a name is a text, not {type(name).__name__}")
        if not NAME.fullmatch(name):
            raise ArgumentError("tiers", f"{name!r} is no name: 1 to 64 letters, digits, '.', '_' and '-'")
        if SET.fullmatch(name):
            raise ArgumentError("tiers", f"{name!r} is no name, but a set")
        if layers is None:
            raise TypeError(f"tiers: {name}: expected a text or blocks, not NoneType")
        found[name] = skipset.layers_text(layers, f"tiers: {name}")
    return found


def check_tier(text: str, tiers: Mapping[str, Mask]) -> None:
    """Raise ValueError where a text can only be the name of a tier, which is not there."""
    if NAME.fullmatch(text) and not SET.fullmatch(text):
        known = ", ".join(tiers) or "none"
        raise ArgumentError("skip_layers", f"{text!r} is no set and no tier; tiers: {known}")
