"""What a context holds: the tokens of its one sequence, and the mask that each was decoded under."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from llama_skip import _core

T = TypeVar("T")


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

    def __init__(self, context: _core.Context) -> None:
        self.context = context
        self.tokens: list[int] = []
        self.lock = RLock()
        self._masks: list[str] = []
        self._mask = ""
        self._n_changes = 0

    def set_mask(self, layers: str, scale: str) -> None:
        """Set the run-time mask, in the text forms of the flags; see `Llama.set_mask`."""
        with self._change():
            self.context.set_mask(layers, scale)
            self._mask = f"{self.context.mask} {scale}"

    def truncate(self, n_tokens: int) -> None:
        """Remove the tokens from position `n_tokens` on; all of them where the memory cannot do less."""
        with self._change():
            if not self.context.memory_seq_rm(0, n_tokens, -1):
                self.context.memory_clear()
                n_tokens = 0
            del self.tokens[n_tokens:]
            del self._masks[n_tokens:]

    def eval(self, tokens: Sequence[int]) -> None:
        """Append tokens; the context then has the logits of the last one."""
        self._append(tokens, lambda array, pos: self.context.eval(array, pos, 0))

    def logits(self, tokens: Sequence[int], first: int) -> npt.NDArray[np.float32]:
        """Append tokens and return the logits of those from `first` on, float32 [n - first, n_vocab]."""
        return self._append(tokens, lambda array, pos: self.context.decode(array, pos, 0, first))

    def start(self, prompt: Sequence[int]) -> None:
        """Hold exactly `prompt`, with the logits of its last token; what it shares with the present is kept.

        A token that was decoded under another mask, or other factors, is not shared.
        """
        with self._change():
            n = 0
            for held, mask, wanted in zip(self.tokens, self._masks, prompt[:-1], strict=False):
                if held != wanted or mask != self._mask:
                    break
                n += 1
            self.truncate(n)
            self.eval(prompt[len(self.tokens) :])

    def generate(self, prompt: Sequence[int], sampler: _core.Sampler) -> Iterator[int]:
        """Yield tokens without end; each is evaluated when the next one is asked for.

        Raises:
            RuntimeError: the context is full, or something else was evaluated in between.
        """
        with self.lock:
            self.start(prompt)
            token = sampler.sample(self.context, -1)
            n_changes = self._n_changes
        while True:
            yield token
            with self.lock:
                if self._n_changes != n_changes:
                    raise RuntimeError("this stream cannot go on: its Llama did something else in between")
                self.eval([token])
                token = sampler.sample(self.context, -1)
                n_changes = self._n_changes

    @contextmanager
    def _change(self) -> Iterator[None]:
        with self.lock:
            self._n_changes += 1
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
            return result

    def _agree(self) -> None:
        """Forget what context and list do not both hold, after an interrupt or a failed decode."""
        n_held = self.context.memory_seq_pos_max(0) + 1
        if n_held > len(self.tokens):
            self.truncate(len(self.tokens))
        elif n_held < len(self.tokens):
            self.truncate(0)
