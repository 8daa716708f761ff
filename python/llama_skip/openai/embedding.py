"""Embeddings of texts, many in a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from llama_skip.model.history import History


def batches(
    sequences: Sequence[Sequence[int]], n_batch: int, n_seq_max: int
) -> Iterator[list[Sequence[int]]]:
    """Yield the sequences in groups of at most `n_seq_max` with at most `n_batch` tokens."""
    group: list[Sequence[int]] = []
    n_tokens = 0
    for tokens in sequences:
        if group and (n_tokens + len(tokens) > n_batch or len(group) == n_seq_max):
            yield group
            group, n_tokens = [], 0
        group.append(tokens)
        n_tokens += len(tokens)
    if group:
        yield group


def embed(
    history: History, sequences: Sequence[Sequence[int]], *, normalize: bool, truncate: bool
) -> tuple[list[npt.NDArray[np.float32]], int]:
    """Return the embeddings of token sequences, and how many tokens they took.

    Args:
        history: of a context with embeddings; it is empty afterwards.
        sequences: the tokens of each text.
        normalize: divide by the Euclidean norm.
        truncate: cut a sequence to what fits into a batch.

    Raises:
        ValueError: an empty sequence, or one that does not fit.
    """
    n_batch = history.context.n_most
    if truncate:
        sequences = [tokens[:n_batch] for tokens in sequences]
    for tokens in sequences:
        if not tokens:
            raise ValueError("input: a text without tokens")
        if len(tokens) > n_batch:
            raise ValueError(f"Requested tokens ({len(tokens)}) exceed batch size of {n_batch}")
    found: list[npt.NDArray[np.float32]] = []
    with history.lock:
        for group in batches(sequences, n_batch, history.context.n_seq_max):
            found.extend(history.embed(group))
    if normalize:
        found = [_normalized(values) for values in found]
    return found, sum(map(len, sequences))


def _normalized(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    norms = np.linalg.norm(values, axis=-1, keepdims=True)
    normalized: npt.NDArray[np.float32] = np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)
    return normalized
