"""Perplexity and KL divergence of several models, files or sets of blocks, in one pass over a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llama_skip.files.identity import Identity
from llama_skip.llama.llama import Llama
from llama_skip.measure import perplexity
from llama_skip.measure.divergence import Scored, score_window

Done = dict[str, list[Scored]]


def key_of(
    file: str, file_id: str, skip_layers: str, skip_scale: str, plan_hash: str, **options: object
) -> str:
    """Return what models are told apart by, in measurements and in the rows that are made of them."""
    words = [file, file_id, skip_layers, skip_scale, plan_hash]
    return "|".join([*words, *(f"{name}={value}" for name, value in options.items())])


@dataclass(frozen=True)
class Candidate:
    """What is measured.

    Attributes:
        name: as tables show it.
        path: the GGUF file.
        model: its identity.
        skip_layers, skip_scale: what is left out of it, as for the flags; "" for none.
        plan, plan_hash, bypass: "@" and a plan file with a bypass, which says that too, its hash, and the
            bypass in words; "" for none.
        options: arguments of `Llama` that only this one has.
    """

    name: str
    path: str
    model: Identity
    skip_layers: str = ""
    skip_scale: str = ""
    plan: str = ""
    plan_hash: str = ""
    bypass: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Equal for candidates that are the same model."""
        model, options = self.model, {name: self.options[name] for name in sorted(self.options)}
        return key_of(model.name, model.file_id, self.skip_layers, self.skip_scale, self.plan_hash, **options)

    @property
    def arguments(self) -> dict[str, str | None]:
        """What is left out of it, as arguments of `Llama` and, in this order, of set_mask()."""
        if self.plan:
            return {"skip_layers": self.plan, "skip_scale": None}
        return {"skip_layers": self.skip_layers or None, "skip_scale": self.skip_scale or None}

    def load(self, **options: Any) -> Llama:
        """Load it with its blocks left out."""
        return Llama(self.path, **{**self.arguments, **options, **self.options})


def text_windows(llm: Llama, tokens: Sequence[int], n_ctx: int) -> list[list[int]]:
    """Return the windows of a text, as llama-perplexity cuts it for this model."""
    return list(perplexity.windows(tokens, n_ctx, llm.token_bos() if llm.adds_bos else None))


def score_candidates(
    reference: Candidate,
    candidates: Sequence[Candidate],
    tokens: Sequence[int],
    *,
    n_ctx: int,
    done: Done,
    on_window: Callable[[], object] = lambda: None,
    **options: Any,
) -> None:
    """Measure each candidate's divergence from the reference; one window's logits of it are held at a time.

    Each file is loaded once for each set of options, all of them together; blocks are left out by run-time
    masks, which give the logits of a load without them.

    Args:
        reference: the full model.
        candidates: what is compared; the reference may be among them.
        tokens: the text.
        n_ctx: tokens in a window.
        done: what was measured, by key and window: read, to go on from there, and appended to.
        on_window: called after each window of each candidate.
        options: arguments of `Llama`.

    Raises:
        ValueError: a file with another vocabulary, or NaN in the logits.
    """
    unique = list({candidate.key: candidate for candidate in candidates}.values())
    with ExitStack() as stack:
        loaded: dict[tuple[str, str], Llama] = {}

        def llama_of(candidate: Candidate) -> Llama:
            at = (candidate.path, str(candidate.options))
            if at not in loaded:
                options_of = {**options, **candidate.options, "n_ctx": n_ctx}
                loaded[at] = stack.enter_context(Llama(candidate.path, **options_of))
                check_vocabulary(loaded[at], loaded[reference.path, str(reference.options)], tokens)
            return loaded[at]

        full = llama_of(reference)
        for i, window in enumerate(text_windows(full, tokens, n_ctx)):
            wanted = [candidate for candidate in unique if len(done.setdefault(candidate.key, [])) == i]
            if not wanted:
                continue
            full.set_mask(None)
            own, logits = score_window(full, window)
            for candidate in wanted:
                if candidate.key == reference.key:
                    piece = own
                else:
                    llm = llama_of(candidate)
                    llm.set_mask(*candidate.arguments.values())
                    piece, _ = score_window(llm, window, logits)
                done[candidate.key].append(piece)
                on_window()


def check_vocabulary(llm: Llama, reference: Llama, tokens: Sequence[int]) -> None:
    """Raise ValueError where `tokens` are not the same text in both models."""
    same = llm.n_vocab() == reference.n_vocab()
    if not same or llm.detokenize(tokens, special=True) != reference.detokenize(tokens, special=True):
        raise ValueError(f"{llm.model_path} has another vocabulary than {reference.model_path}")


def to_json(pieces: Iterable[Scored]) -> list[dict[str, Any]]:
    """Return what was measured as JSON, exactly."""
    return [{name: values.tolist() for name, values in piece._asdict().items()} for piece in pieces]


def from_json(content: Iterable[Mapping[str, Any]]) -> Iterator[Scored]:
    """Yield what to_json() was given."""
    for piece in content:
        surprisal, kld = (np.array(piece[name], dtype=np.float64) for name in ("surprisal", "kld"))
        yield Scored(surprisal, kld, np.array(piece["same"], dtype=np.bool_))
