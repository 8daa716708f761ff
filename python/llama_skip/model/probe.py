"""How far less depth takes a model from what it would say about a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llama_skip.model.depth import Mask
from llama_skip.model.divergence import kl_divergence
from llama_skip.model.history import History


def probe(
    history: History, tokens: Sequence[int], masks: Mapping[str, Mask], n_tokens: int
) -> dict[str, float]:
    """Return the mean KL divergence of masks on the last `n_tokens` of `tokens`; see `Llama.probe`."""
    if not history.context.has_memory:
        raise RuntimeError("this model is an encoder, which predicts no next token")
    n_before = max(len(tokens) - n_tokens, 0)
    with history.lock:
        joined = {name: history.joined(mask) for name, mask in masks.items()}
        history.hold(tokens[:n_before])
        reference = history.logits(tokens[n_before:], 0)
        found = {}
        for name, mask in joined.items():
            history.truncate(n_before)
            with history.at(mask):
                rows = history.logits(tokens[n_before:], 0)
            found[name] = float(kl_divergence(rows, reference).mean())
        history.truncate(n_before)
    return found
