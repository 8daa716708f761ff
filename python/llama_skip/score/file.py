"""What `llama-skip score` measures, and its file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from llama_skip.errors import ArgumentError
from llama_skip.files import identity
from llama_skip.files.identity import Identity, TextInfo
from llama_skip.files.store import Format, StrPath, read_json, typed, write_json
from llama_skip.skipset import Half, Unit

FORMAT = Format("llama-skip-score", version=1)
WITH_HALVES = Format("llama-skip-score", version=2)  # whom a program that knows blocks alone has to refuse


@dataclass(frozen=True)
class BlockScore:
    """One block, or a half: what it does to the stream, what leaving it out alone costs; None is not known.

    Attributes:
        block: its number in the file.
        influence: 1 - cosine similarity of what enters and leaves it, mean over all tokens (ShortGPT).
        norm_in, norm_out: Euclidean norms of the stream before and behind it, means over all tokens.
        perplexity, perplexity_error: of the model without it, and its standard error; of what was measured on
            a part of the text, times the full model's perplexity on all of it over that on this part.
        kld, kld_error: KL divergence of that model from the full one, nats per token, and its standard error.
        n_scored: the tokens that these rest on.
        weights_bytes, kv_bytes_per_token: what leaving it out saves.
        refused: why it cannot be left out.
        half: "attn" or "ffn" for that half of the block alone, of which the stream is not known.
    """

    block: int
    influence: float | None = None
    norm_in: float | None = None
    norm_out: float | None = None
    perplexity: float | None = None
    perplexity_error: float | None = None
    kld: float | None = None
    kld_error: float | None = None
    n_scored: int = 0
    weights_bytes: int = 0
    kv_bytes_per_token: float = 0.0
    refused: str | None = None
    half: Half | Literal[""] = ""

    @property
    def unit(self) -> Unit:
        """The block, or the half of it, as skip sets name them."""
        return (self.block, self.half) if self.half else self.block


@dataclass(frozen=True)
class Step:
    """A step of the greedy path: the block or half that goes, and the model after it.

    Attributes:
        block: its number in the file.
        perplexity, perplexity_error: without it and all that went before.
        kld, kld_error: KL divergence from the full model, nats per token.
        top1: the share of tokens with the full model's most probable token.
        n_scored: the tokens that these rest on.
        bytes: of the weights that are left out so far.
        half: "attn" or "ffn" where that half of the block goes alone. A block whose half went before replaces
            it.
    """

    block: int
    perplexity: float
    perplexity_error: float
    kld: float
    kld_error: float
    top1: float
    n_scored: int
    bytes: int
    half: Half | Literal[""] = ""

    @property
    def unit(self) -> Unit:
        """What goes, as skip sets name it."""
        return (self.block, self.half) if self.half else self.block


@dataclass(frozen=True)
class Score:
    """What a score file holds.

    Attributes:
        model: what was measured.
        text: on what.
        settings: all that is needed to repeat it.
        complete: whether the path is as long as was asked for.
        perplexity, perplexity_error: of the full model.
        blocks: each block of the file alone.
        angular: `[l][n - 1]`: angular distance, 0 to 1, between what enters block l and block l + n, mean
            over all tokens (Gromov et al.); None where it is not known.
        path: the greedy order.
        halves: each half of a block alone, for a path that was chosen among them too.
    """

    model: Identity
    text: TextInfo
    settings: dict[str, Any]
    complete: bool
    perplexity: float
    perplexity_error: float
    blocks: list[BlockScore] = field(default_factory=list)
    angular: list[list[float | None]] = field(default_factory=list)
    path: list[Step] = field(default_factory=list)
    halves: list[BlockScore] = field(default_factory=list)

    metric = "kld+surprisal"

    @property
    def heals(self) -> bool:
        """Whether maps stood in the gaps; factors stood there in scores of older programs."""
        return isinstance(self.settings.get("heal"), dict)

    @property
    def alone(self) -> list[BlockScore]:
        """Blocks and halves, each block before its halves."""
        return sorted([*self.blocks, *self.halves], key=lambda block: block.block)


def write_score(path: StrPath, score: Score) -> None:
    """Write a score file; what it held before stays where that fails.

    Raises:
        OSError: it cannot be written.
    """
    content = asdict(score)
    full = {key: content.pop(key) for key in ("perplexity", "perplexity_error")}
    if not score.halves:
        del content["halves"]
        for entry in (*content["blocks"], *content["path"]):
            del entry["half"]
    kind = WITH_HALVES if score.halves else FORMAT
    write_json(path, kind, {**content, "metric": score.metric, "full": full})


def read_score(path: StrPath) -> Score:
    """Return the score in a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a score file, or of a newer version.
    """
    content = read_json(path, FORMAT, WITH_HALVES)
    identity.check_known(content, path, needed=("model_id", "file_id", "n_layer"))
    full = content.get("full")
    return typed({**content, **full} if isinstance(full, dict) else content, Score, path, "score")


def share_of_blocks(fraction: float, n_layer: int) -> int:
    """Return a share of the blocks: rounded down, at least one.

    Args:
        fraction: over 0 and below 1.
        n_layer: blocks in the file.

    Raises:
        ValueError: a fraction out of range.
    """
    if not 0 < fraction < 1:
        raise ArgumentError("fraction", f"{fraction:g} is out of range, expected over 0 and below 1")
    return max(int(fraction * n_layer + 1e-9), 1)
