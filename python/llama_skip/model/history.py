"""What a context holds: the tokens of its one sequence, and the mask that each was decoded under."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import RLock
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from llama_skip import _core
from llama_skip.errors import ArgumentError
from llama_skip.model.depth import IN_FORCE, Depth, Mask
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
        self.scores = np.empty((0, n_vocab), dtype=np.float32)  # grows with the tokens that are held
        self._logits_all = logits_all
        self._logits_tag: str | None = None  # of the mask that the last logits were computed under
        self._masks: list[str] = []
        # what the context has, what set_mask() asked for, and what the next tokens are evaluated under
        self._made = self.mask = self._mask = Mask("none", "", context.mask, context.state_tag)
        self._n_changes = 0

    def set_mask(self, layers: str, scale: str) -> None:
        """Set the run-time mask, in the text forms of the flags; see `Llama.set_mask`."""
        with self._change():
            self.mask = self._mask = self._make(layers, scale)

    def find_mask(self, layers: str, name: str) -> Mask:
        """Return the mask of a text, for at(); the one in force stays.

        Args:
            layers: as for set_mask().
            name: the argument's name, for errors.

        Raises:
            ValueError: as by set_mask().
        """
        with self.lock:
            try:
                return self._settled(self._make(layers, ""))
            except ValueError as err:
                raise ArgumentError(name, str(err).removeprefix("mask: ")) from None

    def joined(self, asked: Mask | None) -> Mask:
        """Return what leaves out all that `asked` and the mask in force do; None: the latter.

        Raises:
            ValueError: factors or bypasses that the gaps of both would not have, or nothing is left.
        """
        with self.lock:
            if asked is None:
                return self.mask
            self.mask = self._settled(self.mask)
            if self.mask.is_plain and asked.covers(self.mask):
                return asked
            if self.mask.covers(asked):
                return self.mask
            if self.mask.is_plain and asked.is_plain:
                return self.find_mask(f"{self.mask.layers},{asked.layers}", "skip_layers")
            raise ArgumentError(
                "skip_layers",
                f"{asked.text} and the mask in force, {self.mask.text}, cannot be joined, as one of them has "
                "factors or bypasses in its gaps: set_mask(None) first",
            )

    @contextmanager
    def at(self, mask: Mask) -> Iterator[None]:
        """Evaluate under a mask of joined() meanwhile."""
        with self.lock:
            self._mask = mask
            try:
                yield
            finally:
                self._mask = self.mask

    def truncate(self, n_tokens: int) -> None:
        """Remove the tokens from position `n_tokens` on; see `Llama.truncate`."""
        if n_tokens < 0:
            raise ValueError(f"n_tokens: {n_tokens} is below 0")
        with self._change():
            self._hold(self.tokens[:n_tokens])
            self._logits_tag = None

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
        if not 0 <= first <= len(tokens):
            raise ValueError(f"first: {first} is not within 0-{len(tokens)}")
        rows = self._append(tokens, lambda array, pos: self.context.decode(array, pos, 0, 0))
        self._set_scores(len(self.tokens) - len(rows), rows)
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
            self._enter()
            rows = self.context.resume(np.ascontiguousarray(stream, dtype=np.float32), 0, 0, first)
            self.truncate(0)
            return rows

    def embed(self, sequences: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
        """Return the embeddings of sequences that fit into one batch; the context is empty afterwards."""
        with self._change():
            self.truncate(0)
            self._enter()
            return self.context.embed([token_array(tokens) for tokens in sequences])

    def start(self, prompt: Sequence[int]) -> None:
        """Hold exactly `prompt`, with the logits of its last token; what it shares with the present is kept.

        A token that was decoded under another mask, or another bypass, is not shared.
        """
        with self._change():
            self._share(prompt[:-1])
            self.eval(prompt[len(self.tokens) :])

    def hold(self, tokens: Sequence[int]) -> None:
        """Hold exactly `tokens`, as start() does, with or without logits; there may be none."""
        with self._change():
            self._share(tokens)
            if len(self.tokens) < len(tokens):
                self.eval(tokens[len(self.tokens) :])

    def choose(self, choose: Choose) -> int | None:
        """Return the token that `choose` takes by the last logits.

        Raises:
            RuntimeError: nothing was evaluated since the last change of the tokens.
        """
        with self.lock:
            if self._logits_tag is None:
                raise RuntimeError("there are no logits to sample from: evaluate a token first")
            if not self.context.has_memory:
                raise RuntimeError("this model is an encoder, which writes no text")
            n_changes = self._n_changes
            token = choose(self.context, self.tokens)
            if self._n_changes != n_changes:
                raise RuntimeError("this stream cannot go on: its Llama did something else in between")
            return token

    def generate(
        self, prompt: Sequence[int], choose: Choose, depth: Depth = IN_FORCE
    ) -> Generator[int, Sequence[int] | None, None]:
        """Yield tokens until `choose` returns None; each is evaluated when the next one is asked for.

        Tokens that are sent are evaluated after the one that was yielded last. What `depth` asks for is left
        out together with what the mask in force leaves out, by the evaluations of this generator alone.

        Raises:
            ValueError: as by joined().
            RuntimeError: the context is full, or something else was evaluated in between.
        """
        with self.lock:
            first, rest = self.joined(depth.prompt), self.joined(depth.answer)
            with self.at(first):
                if not self._is_ready(prompt, depth):
                    self.start(prompt)
            token = self.choose(choose)
            n_changes = self._n_changes
        while token is not None:
            sent = yield token
            with self.lock:
                if self._n_changes != n_changes:
                    raise RuntimeError("this stream cannot go on: its Llama did something else in between")
                added = [token, *(sent or [])]
                with self.at(rest):
                    self.eval(added)
                if rest.without_cache == first.without_cache:  # nothing is missing when the depth changes
                    self._masks[-len(added) :] = [first.tag] * len(added)
                token = self.choose(choose)
                n_changes = self._n_changes

    def save(self, seed: int, weights_id: str) -> LlamaState:
        """Return a copy of all that is held."""
        with self.lock:
            self._enter()
            state = self.context.state()
            return LlamaState(
                input_ids=np.array(self.tokens, dtype=np.intc),
                scores=self.scores[: len(self.tokens)].copy(),
                n_tokens=len(self.tokens),
                llama_state=state,
                llama_state_size=len(state),
                seed=seed,
                masks=tuple(self._masks),
                weights_id=weights_id,
            )

    def load(self, state: LlamaState, weights_id: str) -> None:
        """Hold what `state` holds; after an error the context is empty."""
        with self._change():
            self.truncate(0)
            self._enter()
            if state.weights_id != weights_id:
                ids = f"weights_id {state.weights_id!r}, not {weights_id!r}"
                raise RuntimeError(f"the state was saved with another model: {ids}")
            try:
                self.context.set_state(state.llama_state)
            except BaseException:
                self.context.keep(0)
                raise
            self.tokens = state.input_ids.tolist()
            self._masks = list(state.masks)
            if self._logits_all:
                is_known = len(state.scores) == state.n_tokens
                unknown = np.full((state.n_tokens, self.scores.shape[1]), np.nan, dtype=np.float32)
                self._set_scores(0, state.scores if is_known else unknown)

    def _set_scores(self, start: int, rows: npt.NDArray[np.float32]) -> None:
        """Hold the logits of the tokens from `start` on; those before that are not known are NaN."""
        stop = start + len(rows)
        if stop > len(self.scores):
            n_rows = max(stop, min(2 * len(self.scores), self.context.n_ctx))
            grown = np.full((n_rows, self.scores.shape[1]), np.nan, dtype=np.float32)
            grown[: len(self.scores)] = self.scores
            self.scores = grown
        self.scores[start:stop] = rows

    @contextmanager
    def _change(self) -> Iterator[None]:
        with self.lock:
            self._n_changes += 1
            self._logits_tag = None
            yield

    def _make(self, layers: str, scale: str) -> Mask:
        self.context.set_mask(layers, scale)
        self._made = Mask(layers, scale, self.context.mask, self.context.state_tag)
        return self._made

    def _settled(self, mask: Mask) -> Mask:
        """Return the same mask by its blocks alone, if that says all: no plan has to be read again."""
        if mask.is_plain:
            return mask
        plain = self._make(mask.text or "none", "")
        return plain if plain.tag == mask.tag else mask

    def _enter(self) -> None:
        """Let the context have the mask that the next tokens are evaluated under."""
        if (
            self._made.tag != self._mask.tag
            and self._make(self._mask.layers, self._mask.scale).tag != self._mask.tag
        ):
            raise RuntimeError(f"the plan {self._mask.layers!r} has changed since its mask was made")

    def _is_ready(self, prompt: Sequence[int], depth: Depth) -> bool:
        """Whether exactly `prompt` is held, with the logits that start() would give."""
        is_held = list(prompt) == self.tokens and self._logits_tag == self._mask.tag
        return is_held and (depth.prompt is None or set(self._masks) == {self._mask.tag})

    def _share(self, tokens: Sequence[int]) -> None:
        """Keep the first tokens that are these, and were decoded under the same mask."""
        n = 0
        for held, tag, wanted in zip(self.tokens, self._masks, tokens, strict=False):
            if held != wanted or tag != self._mask.tag:
                break
            n += 1
        self._keep(n)

    def _append(self, tokens: Sequence[int], decode: Callable[[npt.NDArray[np.int64], int], T]) -> T:
        array = token_array(tokens)
        with self._change():
            held = list(self.tokens)
            self._hold(held)
            self._enter()
            try:
                result = decode(array, len(self.tokens))
            except RuntimeError:
                with suppress(RuntimeError):  # the first one says what is wrong
                    self._hold(held)
                raise
            except BaseException:
                self._keep(len(held))
                raise
            self.tokens.extend(array.tolist())
            self._masks.extend([self._mask.tag] * array.size)
            self._logits_tag = self._mask.tag
            return result

    def _hold(self, tokens: list[int]) -> None:
        """Hold these first tokens of those that are held, evaluated again where the memory lost them."""
        self._keep(len(tokens))
        if len(self.tokens) < len(tokens) and self.context.has_memory:
            self.eval(tokens)

    def _keep(self, n_tokens: int) -> None:
        """Hold the first `n_tokens` tokens, or none where the memory cannot go back so far."""
        held = self.context.keep(n_tokens)
        del self.tokens[held:]
        del self._masks[held:]
