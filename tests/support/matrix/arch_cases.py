"""Which sets are left out of which model, and what is to be expected: the cases of the matrix."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from support.matrix.arch_files import Model
from support.matrix.arch_oracle import keeps_kinds

# architectures whose blocks mix streams or norm the stream: the pruned file is the reference
PRUNED = {
    "bert",
    "nomic-bert",
    "nomic-bert-moe",
    "jina-bert-v2",
    "jina-bert-v3",
    "minimax-01",
    "gemma3n",
    "deepseek4",
    "hy_v4",
    "glm5-next",
}
# where a block's kind goes by its number, and no list in the file says it
PERIOD = {"nomic-bert-moe": 2, "minimax-01-moe": 1}
# more sets under which the kept blocks stay what they are
CHOSEN = {
    "minimax-01-moe": [(1, 2, 3, 5, 6, 7)],
    "nomic-bert-moe": [(0, 1), (2, 3)],
    "glm-dsa-moe": [(0, 1), (2, 3)],
    "hy_v4-moe": [(0, 1), (2, 3)],
    "gemma4-shared": [(4, 6, 7), (5, 8)],
    "gemma3n-shared": [(19, 21, 23), (18, 20, 22)],
}
EMBEDDINGS = {
    *("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "neo-bert", "modern-bert"),
    *("eurobert", "gemma-embedding", "t5encoder", "llama-embed"),
}


@dataclass(frozen=True)
class Set:
    name: str
    blocks: tuple[int, ...]

    @property
    def spec(self) -> str:
        return ",".join(map(str, self.blocks))


def kinds(model: Model) -> list[str]:
    """What each block is: its mixer, its feed-forward, whether its attention has a window."""
    n = model.n_layer
    own: list[set[str]] = [set() for _ in range(n)]
    for name in model.tensors:
        match = re.match(r"(?:enc\.)?blk\.(\d+)\.(.*)", name)
        if match and int(match[1]) < n:
            own[int(match[1])].add(match[2])
    window = model.value("attention.sliding_window_pattern")
    recurrent = model.value("attention.recurrent_layers")
    heads = model.value("attention.head_count_kv")

    ratios = model.value("attention.compress_ratios") if model.arch == "deepseek4" else None

    def kind(il: int) -> str:
        names = " ".join(own[il])
        mixers = []
        if re.search(r"ssm_|time_mix|shortconv", names):
            mixers.append("recurrent")
        if re.search(r"attn_(k|qkv|kv|q_a|q)\b", names) and not (isinstance(heads, list) and heads[il] == 0):
            mixers.append("attention")
        text = "+".join(mixers) or "feed-forward"
        if isinstance(recurrent, list) and recurrent[il]:
            text = "recurrent"
        if "attention" in text and isinstance(window, list) and window[il]:
            text = text.replace("attention", "window attention")
        if ratios and ratios[il]:
            text += f" compressed by {ratios[il]}"
        return text + (" with MoE" if "_exps" in names else "")

    return [kind(il) for il in range(n)]


def sets(model: Model, *, every: bool) -> list[Set]:
    """The sets of the matrix; without `every` the few that a default run takes."""
    n = model.n_layer
    if n == 0:
        return [Set("first", (0,))]  # a draft head, all NextN blocks
    found = [
        Set("middle", (n // 2,)),
        Set("first", (0,)),
        Set("last two", (n - 2, n - 1)),
        Set("every second", tuple(range(1, n, 2))),
    ]
    if every:
        found += [Set("last", (n - 1,))]
        rng = random.Random(model.name)
        found += [Set("random", tuple(sorted(rng.sample(range(n), rng.randint(1, n - 1))))) for _ in range(3)]
        found += [Set(f"single {il}", (il,)) for il in range(n)]
        found += [Set("chosen", blocks) for blocks in CHOSEN.get(model.name, [])]
    by_kind: dict[str, list[int]] = {}
    for il, kind in enumerate(kinds(model)[:n]):
        by_kind.setdefault(kind, []).append(il)
    found += [Set(f"all {kind}", tuple(blocks)) for kind, blocks in by_kind.items() if len(blocks) < n]
    unique: dict[tuple[int, ...], Set] = {}
    for chosen in found:
        unique.setdefault(chosen.blocks, chosen)
    return [s for s in unique.values() if len(s.blocks) < n]


def reference(model: Model, chosen: Set) -> str | None:
    """Which file the set is compared with: "zeroed", "pruned", or None where no file says what is right."""
    if model.arch not in PRUNED:
        return "zeroed"
    n = model.n_layer
    if model.arch == "gemma3n" and n > 20 and min(chosen.blocks) < 20:
        return None  # the number 20 is upstream's, not the file's
    kept = [il for il in range(n) if il not in chosen.blocks]
    fits = keeps_kinds(kept, n, PERIOD.get(model.name, 1), model.arch == "minimax-01")
    # the unpatched library does not run a hybrid without blocks of one of its kinds
    own = kinds(model)
    mixers = [{own[il].partition(" with")[0] for il in blocks} for blocks in (kept, range(n))]
    return "pruned" if fits and mixers[0] == mixers[1] else None
