"""Where blocks stay what they are under new numbers, in the unpatched llama.cpp.

llama.cpp derives much from a block's number. What it reads from a list can be written; what it computes from
the number alone refuses every set under which a kept block would become another. `docs/bake.md` has the
outcome for every architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from llama_skip import _core
from llama_skip.files.gguf import Gguf

# read as one value a block, or as lists that may be longer or shorter than the block count
PER_BLOCK = {
    "attention.compress_ratios",
    "attention.indexer.types",
    "attention.recurrent_layers",
    "attention.rope_pattern",
    "attention.sliding_window_pattern",
    "deepstack_mapping",
}
# llama.cpp takes the first block's value of these for the whole model in places
FIRST = [
    "attention.head_count",
    "attention.head_count_kv",
    "feed_forward_length",
    "expert_feed_forward_length",
    "expert_used_count",
]

WHOLE = {
    "gemma3n": "which blocks share caches is fixed in llama.cpp, and its embeddings have a part for each",
    "minicpm3": "llama.cpp scales what a block adds by the number of blocks",
}
# numbers of blocks by which llama.cpp recognises a model that it treats differently
COUNTS = {
    "baichuan": {32, 40},
    "deepseek2": {26, 27, 47, 48},
    "exaone4": {64},
    "gemma2": {46},
    "gemma3": {62},
}
# sliding windows from a period, whether its first block is the one without, unless a list says it
WINDOWS = {
    "afmoe": (4, False),
    "cohere2": (4, False),
    "cohere2moe": (4, True),
    "exaone-moe": (4, False),
    "exaone4": (4, False),
    "gemma-embedding": (6, False),
    "gemma2": (2, False),
    "gemma3": (6, False),
    "gpt-oss": (2, False),
    "laguna": (4, True),
    "llama4": (4, False),
    "mellum": (4, False),
    "modern-bert": (3, True),
    "muse-glimmer": (4, False),
    "olmo2": (4, False),
    "plamo3": (8, False),
    "smallthinker": (4, True),
}
RECURRENT = {"qwen35", "qwen35moe", "qwen3next", "qwen4exp", "minimax-01"}


@dataclass(frozen=True)
class Model:
    """A model's numbers; keys are without the architecture."""

    gguf: Gguf

    @property
    def arch(self) -> str:
        return self.gguf.architecture

    def get(self, key: str, default: Any = None) -> Any:
        return self.gguf.value(f"{self.arch}.{key}", default)

    @property
    def n_all(self) -> int:
        return int(self.get("block_count", 0))

    @property
    def n(self) -> int:
        """Blocks of the trunk; those that predict further tokens are behind them."""
        return self.n_all - int(self.get("nextn_predict_layers", 0))

    @property
    def has_windows(self) -> bool:
        if self.arch == "exaone4":
            return self.n == 64
        size = self.get("attention.sliding_window")
        return self.arch in ("gemma2", "llama4") if size is None else size > 0

    def windows(self, n: int) -> list[bool] | None:
        """What llama.cpp computes for n blocks where no list says it, None where it computes nothing."""
        given = self.get("attention.sliding_window_pattern")
        if self.arch not in WINDOWS or not self.has_windows or isinstance(given, list):
            return None
        period, first = WINDOWS[self.arch]
        period = period if given is None else int(given)
        return [period == 0 or (il % period != 0 if first else il % period < period - 1) for il in range(n)]

    def recurrent(self, n: int) -> list[bool] | None:
        """The same for blocks without attention."""
        if self.arch not in RECURRENT or self.get("attention.recurrent_layers") is not None:
            return None
        interval = int(self.get("full_attention_interval", 4))
        return [(il + 1) % interval != 0 for il in range(n)]


# why a kept block would become another under a new number: the reason, and what has to stay the same
Rule = tuple[str, Callable[[Model, int, int], Any]]


def _no_rope(m: Model, il: int, n: int) -> bool:
    return (il + 1) % (n if m.arch == "llama4" and not m.has_windows else 4) == 0


def _llama4(m: Model, il: int, n: int) -> Any:
    step = int(m.get("interleave_moe_layer_step", 0))
    return _no_rope(m, il, n), step > 0 and (il + 1) % step == 0


def _every(key: str, kind: Callable[[int, int], Any]) -> Callable[[Model, int, int], Any]:
    return lambda m, il, n: kind(il, int(m.get(key, 0))) if m.get(key) else None


ROPE = "whether a block has rotary positions goes by its number"
RULES: dict[str, Rule] = {
    "afmoe": (ROPE, _no_rope),
    "command-r": ("norms of queries and keys go by the number of blocks", lambda m, il, n: n >= 64),
    "ernie4_5-moe": (
        "whether a block has experts goes by its number",
        _every("interleave_moe_layer_step", lambda il, step: (il + 1) % step == 0),
    ),
    "kimi-k3": (
        "which blocks keep the residual stream for later ones goes by their number",
        _every("attn_res.block_size", lambda il, size: il % size == 0),
    ),
    "llama4": ("rotary positions and experts go by a block's number", _llama4),
    "minimax-01": (
        "the decay of a block goes by its place among all",
        lambda m, il, n: Fraction(il, max(n - 1, 1)),
    ),
    "modern-bert": ("only block 0 has no norm before attention", lambda m, il, n: il == 0),
    "nomic-bert-moe": (
        "whether a block has experts goes by its number",
        _every("moe_every_n_layers", lambda il, step: il % step == 1),
    ),
    # a step equal to the number of blocks means rotary positions everywhere
    "smallthinker": (ROPE, lambda m, il, n: m.has_windows and n != 4 and il % 4 == 0),
    "smollm3": (ROPE, _no_rope),
}


def check(m: Model, kept: list[int], out: Collection[int]) -> None:
    """Check a set of a model.

    Args:
        m: the model.
        kept, out: the blocks of its trunk that stay and those that go.

    Raises:
        ValueError: the unpatched llama.cpp would compute something else from the pruned file.
    """
    n = len(kept)
    if m.arch not in _core.tested_architectures():  # by tests/verbs/test_bake.py too
        raise ValueError(
            f"architecture '{m.arch}': that its blocks stay the same under new numbers was never tested"
        )
    if m.arch in WHOLE:
        raise ValueError(f"architecture '{m.arch}': {WHOLE[m.arch]}")
    if {m.n, n} & COUNTS.get(m.arch, set()):
        raise ValueError(
            f"architecture '{m.arch}': llama.cpp recognises some of its models by their number of blocks, "
            f"and would not treat {n} blocks as it does {m.n}"
        )
    if m.arch in RULES:
        reason, kind = RULES[m.arch]
        for new, old in enumerate(kept):
            if kind(m, old, m.n) != kind(m, new, n):
                raise ValueError(f"block {old} would become block {new}: {reason}")
        if m.arch in ("afmoe", "llama4"):
            _check_kinds("rotary positions", [not _no_rope(m, il, m.n) for il in range(m.n)], kept)
    _check_lists(m, kept)
    _check_more(m, kept, out)


def _lists(m: Model, names: Iterable[str]) -> Iterable[tuple[str, list[Any]]]:
    for name in names:
        values = m.get(name)
        if name == "attention.sliding_window_pattern":
            values = m.windows(m.n) or values
        elif name == "attention.recurrent_layers":
            values = m.recurrent(m.n) or values
        if isinstance(values, list) and len(values) >= m.n:
            yield name, values[: m.n]


def _check_lists(m: Model, kept: list[int]) -> None:
    for name, values in _lists(m, FIRST):
        if values[kept[0]] != values[0]:
            raise ValueError(
                f"block {kept[0]} would become block 0, whose {name} llama.cpp takes for the whole model: "
                f"{values[kept[0]]} instead of {values[0]}"
            )
    sizes = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    two_sizes = any(m.get(f"{key}_swa", m.get(key)) != m.get(key) for key in sizes)
    for _, values in _lists(m, ["attention.sliding_window_pattern"]):
        if two_sizes and values[kept[0]] != values[0]:
            raise ValueError(
                f"block {kept[0]} would become block 0, whose head size llama.cpp takes for the whole model, "
                "and blocks with a window have another one"
            )
    for name, values in _lists(m, [*sorted(PER_BLOCK), "attention.head_count_kv", "feed_forward_length"]):
        flags = [int(v) if name in PER_BLOCK else int(v != 0) for v in values]
        _check_kinds(name, flags, kept)
    if m.arch == "minimax-m3":
        lead = int(m.get("leading_dense_block_count", 0))
        _check_kinds("sparse attention", [il >= lead for il in range(m.n)], kept)


def _check_kinds(what: str, flags: Sequence[int], kept: list[int]) -> None:
    """llama.cpp aborts where an input of the graph is read by no block."""
    gone = set(flags) - {flags[il] for il in kept}
    if gone:
        raise ValueError(
            f"no block with {what} = {int(min(gone))} is left, and llama.cpp needs one of each kind"
        )


def _check_more(m: Model, kept: list[int], out: Collection[int]) -> None:
    """What needs more than a block's own number."""
    every = int(m.get("rescale_every_n_layers", 0)) if m.arch == "rwkv6" else 0
    if every and any(old // every != new // every for new, old in enumerate([*kept, m.n])):
        raise ValueError(f"the stream is halved after every {every} blocks, which would then be others")
    if m.get("num_loops", 1) > 1:
        raise ValueError("its blocks run in loops, which was not compared")
    first = int(m.get("n_deepstack_layers", 0))
    mapping = m.get("deepstack_mapping") or []
    images = {il for il, v in enumerate(mapping) if v >= 0} | set(range(first))
    if images & set(out) or (0 in out and kept[0] in images):
        raise ValueError("image features are added at blocks that would have other numbers")
    if set(m.get("ple.layers") or []) & set(out):
        raise ValueError("the n-gram embeddings of the model belong to a block that would be gone")
    names = {t.name for t in m.gguf.tensors}
    if m.arch == "gemma4" and b"per_layer_token_embd.weight" in names:
        raise ValueError("its embeddings have a part for each block")
    if m.arch == "gemma4" and any(b"blk.%d.layer_output_scale.weight" % il in names for il in out):
        raise ValueError("a block scales the whole stream, and that stays when the block goes")
    if m.arch == "glm-dsa" and m.get("context_length", 0) >= 1 << 20 and not m.get("attention.indexer.types"):
        raise ValueError("which blocks have an indexer goes by their number, and no list in the file says it")
