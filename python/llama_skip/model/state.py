"""A saved context."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class LlamaState:
    """What `Llama.save_state` returns. It may be pickled, and belongs to one model, skip set and mask.

    Attributes:
        input_ids: the tokens that the context held, [n_tokens].
        scores: their logits, float32 [n_tokens, n_vocab] with logits_all, else without rows.
        n_tokens: how many there were.
        llama_state: llama.cpp's own form of the context.
        llama_state_size: its bytes.
        seed: of completions without one of their own.
        masks: the mask and bypasses that each token was decoded under.
        weights_id: of the beginning of every tensor of the model's file.
    """

    input_ids: npt.NDArray[np.intc]
    scores: npt.NDArray[np.float32]
    n_tokens: int
    llama_state: bytes
    llama_state_size: int
    seed: int
    masks: tuple[str, ...]
    weights_id: str = ""
