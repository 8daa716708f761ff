"""How a plan was found, and what that rests on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from llama_skip.files.identity import TextInfo


@dataclass(frozen=True)
class DiskCosts:
    """What blocks on disk cost, beside what leaving more blocks out would.

    Attributes:
        share: the least speed that was asked for, as a share of left_out_tokens_per_s.
        tokens_per_s: of the plan, single tokens.
        left_out_instead: the blocks that would be left out without any on disk, as for `--skip-layers`.
        left_out_tokens_per_s, left_out_kld, left_out_perplexity: of the model without those.
    """

    share: float
    tokens_per_s: float
    left_out_instead: str
    left_out_tokens_per_s: float
    left_out_kld: float
    left_out_perplexity: float


@dataclass(frozen=True)
class Healing:
    """What was fitted, and on what.

    Attributes:
        texts: the texts.
        rank: of the linear maps at most, None: a quarter of the width.
        ridges: the penalties that were tried first.
        gaps: for each gap "gap", "n_blocks", and "trials", the best first.
        sets: for each set of as many blocks that was tried with maps in its gaps "skip_layers", "kld",
            "perplexity" and "n_scored", the one that was taken first.
    """

    texts: list[TextInfo]
    rank: int | None
    ridges: list[float]
    gaps: list[dict[str, Any]] = field(default_factory=list)
    sets: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """How a plan was found; None is not known.

    Attributes:
        method: "given", "greedy", or another project's; with " + heal" behind it where gaps were fitted.
        target: what the plan was asked for, by the name of the target.
        metric: what the greedy path chose by.
        kld, kld_error, perplexity, perplexity_error, top1, n_scored: of the model under the plan.
        perplexity_full: of the full model.
        text: what all these were measured on.
        bytes: of the weights that are left out.
        speedup: how many times as fast single tokens are.
        disk: what blocks on disk cost.
        heal: what was fitted.
        recommended: which of the plan and its alternatives.
        imported, score, entry: the other project's file, its method, and the part of it that was taken.
    """

    method: str = "given"
    target: dict[str, Any] | None = None
    metric: str | None = None
    kld: float | None = None
    kld_error: float | None = None
    perplexity: float | None = None
    perplexity_error: float | None = None
    perplexity_full: float | None = None
    top1: float | None = None
    n_scored: int | None = None
    text: TextInfo | None = None
    bytes: int | None = None
    speedup: float | None = None
    disk: DiskCosts | None = None
    heal: Healing | None = None
    recommended: str | None = None
    imported: str | None = None
    score: str | None = None
    entry: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what is known, as a plan file has it."""
        return {name: value for name, value in asdict(self).items() if value is not None}
