"""What a context holds: the tokens of its one sequence, and the mask that each was decoded under."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from llama_skip import _core
from llama_skip.model.state import LlamaState

T = TypeVar("T")
Choose = Callable[[_core.Context, Sequence[int]], int | None]


def token_array(tokens: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return tokens as an array.

    Raises:
        ValueError: no token.
        TypeError: something that is not an int.
    """
    array = np.asarray(tokens)
    if array.size == 0:
        raise ValueError("tokens: empty")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError("tokens: expected a list of ints")
    return array.astype(np.int64, copy=False)


class History:
    """A context, and the tokens in it. Methods wait for each other; `lock` makes several of them one step."""

    def __init__(self, context: _core.Context, *, n_vocab: int, logits_all: bool) -> None:
        self.context = context
        self.tokens: list[int] = []
        self.lock = RLock()
        # pages of it exist once they are written
        self.scores = np.empty((context.n_ctx if logits_all else 0, n_vocab), dtype=np.float32)
        self._logits_all = logits_all
        self._has_logits = False
        self._masks: list[str] = []
        self._mask = context.state_tag
        self._n_changes = 0

    def set_mask(self, layers: str, scale: str) -> None:
        """Set the run-time mask, in the text forms of the flags; see `Llama.set_mask`."""
        with self._change():
            self.context.set_mask(layers, scale)
            self._mask = self.context.state_tag

    def truncate(self, n_tokens: int) -> None:
        """Remove the tokens from position `n_tokens` on; all of them where the memory cannot do less."""
        if n_tokens < 0:
            raise ValueError(f"n_tokens: {n_tokens} is below 0")
        with self._change():
            if not self.context.memory_seq_rm(0, n_tokens, -1):
                self.context.memory_clear()
                n_tokens = 0
            del self.tokens[n_tokens:]
            del self._masks[n_tokens:]

    def eval(self, tokens: Sequence[int]) -> None:
        """Append tokens; the context then has the logits of the last one."""
        if self._logits_all:
            self.logits(tokens, 0)
        else:
            self._append(tokens, lambda array, pos: self.context.eval(array, pos, 0))

    def logits(self, tokens: Sequence[int], first: int) -> npt.NDArray[np.float32]:
        """Append tokens and return the logits of those from `first` on, float32 [n - first, n_vocab]."""
        if not self._logits_all:
            return self._append(tokens, lambda array, pos: self.context.decode(array, pos, 0, first))
        rows = self._append(tokens, lambda array, pos: self.context.decode(array, pos, 0, 0))
        n_tokens = len(self.tokens)
        self.scores[n_tokens - len(rows) : n_tokens] = rows
        return rows[first:]

    def hidden_states(
        self, tokens: Sequence[int]
    ) -> tuple[list[int], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Hold exactly `tokens`; return the kept blocks, and what enters and leaves each of them."""
        with self.lock:
            self.truncate(0)
            return self._append(tokens, lambda array, pos: self.context.hidden_states(array, pos, 0))

    def trace(
        self, tokens: Sequence[int], first: int
    ) -> tuple[list[int], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Hold exactly `tokens`; return the kept blocks, what enters them, and logits from `first` on."""
        with self.lock:
            self.truncate(0)
            return self._append(tokens, lambda array, pos: self.context.trace(array, pos, 0, first))

    def resume(self, stream: npt.NDArray[np.float32], first: int) -> npt.NDArray[np.float32]:
        """Return the logits of rows of the stream that enter the first block that runs."""
        with self._change():
            self.truncate(0)
            rows = self.context.resume(np.ascontiguousarray(stream, dtype=np.float32), 0, 0, first)
            self.truncate(0)
            return rows

    def embed(self, sequences: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
        """Return the embeddings of sequences that fit into one batch; the context is empty afterwards."""
        with self._change():
            self.truncate(0)
            return self.context.embed([token_array(tokens) for tokens in sequences])

    def start(self, prompt: Sequence[int]) -> None:
        """Hold exactly `prompt`, with the logits of its last token; what it shares with the present is kept.

        A token that was decoded under another mask, or another bypass, is not shared.
        """
        with self._change():
            n = 0
            for held, mask, wanted in zip(self.tokens, self._masks, prompt[:-1], strict=False):
                if held != wanted or mask != self._mask:
                    break
                n += 1
            self.truncate(n)
            self.eval(prompt[len(self.tokens) :])

    def choose(self, choose: Choose) -> int | None:
        """Return the token that `choose` takes by the last logits.

        Raises:
            RuntimeError: nothing was evaluated since the last change of the tokens.
        """
        with self.lock:
            if not self._has_logits:
                raise RuntimeError("there are no logits to sample from: evaluate a token first")
            return choose(self.context, self.tokens)

    def generate(self, prompt: Sequence[int], choose: Choose) -> Generator[int, Sequence[int] | None, None]:
        """Yield tokens until `choose` returns None; each is evaluated when the next one is asked for.

        Tokens that are sent are evaluated after the one that was yielded last.

        Raises:
            RuntimeError: the context is full, or something else was evaluated in between.
        """
        with self.lock:
            if list(prompt) != self.tokens or not self._has_logits:
                self.start(prompt)
            token = self.choose(choose)
            n_changes = self._n_changes
        while token is not None:
            sent = yield token
            with self.lock:
                if self._n_changes != n_changes:
                    raise RuntimeError("this stream cannot go on: its Llama did something else in between")
                self.eval([token, *(sent or [])])
                token = self.choose(choose)
                n_changes = self._n_changes

    def save(self, seed: int) -> LlamaState:
        """Return a copy of all that is held."""
        with self.lock:
            state = self.context.state()
            return LlamaState(
                input_ids=np.array(self.tokens, dtype=np.intc),
                scores=self.scores[: len(self.tokens)].copy(),
                n_tokens=len(self.tokens),
                llama_state=state,
                llama_state_size=len(state),
                seed=seed,
                masks=tuple(self._masks),
            )

    def load(self, state: LlamaState) -> None:
        """Hold what `state` holds; after an error the context is empty."""
        with self._change():
            self.truncate(0)
            try:
                self.context.set_state(state.llama_state)
            except BaseException:
                self.context.memory_clear()
                raise
            self.tokens = state.input_ids.tolist()
            self._masks = list(state.masks)
            if self._logits_all and len(state.scores) == state.n_tokens:
                self.scores[: state.n_tokens] = state.scores

    @contextmanager
    def _change(self) -> Iterator[None]:
        with self.lock:
            self._n_changes += 1
            self._has_logits = False
            yield

    def _append(self, tokens: Sequence[int], decode: Callable[[npt.NDArray[np.int64], int], T]) -> T:
        array = token_array(tokens)
        with self._change():
            self._agree()
            try:
                result = decode(array, len(self.tokens))
            except BaseException:
                self._agree()
                raise
            self.tokens.extend(array.tolist())
            self._masks.extend([self._mask] * array.size)
            self._has_logits = True
            return result

    def _agree(self) -> None:
        """Forget what context and list do not both hold, after an interrupt or a failed decode."""
        n_held = self.context.memory_seq_pos_max(0) + 1
        if n_held > len(self.tokens):
            self.truncate(len(self.tokens))
        elif n_held < len(self.tokens):
            self.truncate(0)
