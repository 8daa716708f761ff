"""A model and its context: loading, tokens, logits, the mask, and memory."""

import os
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from types import MappingProxyType, TracebackType
from typing import NamedTuple, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from llama_skip import _core, skipset
from llama_skip.errors import MIB
from llama_skip.model import params
from llama_skip.model.depth import Mask, check_tier
from llama_skip.model.history import History
from llama_skip.model.state import LlamaState

Self = TypeVar("Self", bound="LoadedModel")
DEFAULT_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED


class DeviceMemory(NamedTuple):
    """What is allocated on one device, in MiB."""

    weights: float
    kv: float
    compute: float


class DiskMemory(NamedTuple):
    """The memory of disk blocks, in MiB: what is mapped of the file, and what of that is in memory."""

    mapped: float
    resident: float


class HiddenStates(NamedTuple):
    """The residual stream around blocks.

    Attributes:
        blocks: the kept blocks, in the file's numbering, [n_kept].
        inputs: what enters each of them, float32 [n_kept, n_tokens, n_embd].
        outputs: what leaves each of them, before the bypass of a gap behind it; of the same shape.
    """

    blocks: list[int]
    inputs: npt.NDArray[np.float32]
    outputs: npt.NDArray[np.float32]


class Trace(NamedTuple):
    """What a model computed of some tokens.

    Attributes:
        blocks: the kept blocks, in the file's numbering, [n_kept].
        inputs: what enters each of them, float32 [n_kept, n_tokens, n_embd].
        logits: float32 [n_tokens - first, n_vocab].
    """

    blocks: list[int]
    inputs: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]


class LoadedModel:
    """What `Llama` is built on: everything but the writing of text."""

    def __init__(
        self,
        model_path: str,
        model: _core.ModelParams,
        context: _core.ContextParams | None,
        *,
        seed: int,
        logits_all: bool = False,
        lora: tuple[str, float] | None = None,
        tiers: Mapping[str, str] | None = None,
    ) -> None:
        self.model_path = model_path
        self._seed = seed
        self._pid = os.getpid()
        self._held: History | None = None
        self._tiers: dict[str, Mask] = {}
        if "\0" in model_path:
            raise ValueError("model_path: a path with a NUL")
        if tiers and context is None:
            raise ValueError("tiers: a vocabulary has no depth")
        self._model: _core.Model | None = _core.Model(os.fsencode(model_path), model)
        if context is not None:
            params.fit_context(context, self._model)
            made = _core.Context(self._model, context)
            if lora is not None:
                made.set_lora(_core.Lora(self._model, os.fsencode(lora[0])), lora[1])
            held = self._held = History(made, n_vocab=self._model.n_vocab, logits_all=logits_all)
            self._tiers = {n: held.find_mask(text, f"tiers: {n}") for n, text in (tiers or {}).items()}

    def close(self) -> None:
        """Free the model; everything else raises RuntimeError afterwards. Closing twice is fine.

        A stream that has begun holds what it needs until it ends.
        """
        # in a forked process, nobody is left who would hand the lock back
        with self._held.lock if self._held and self._pid == os.getpid() else nullcontext():
            self._held = None
            self._model = None

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _m(self) -> _core.Model:
        if self._model is None:
            raise RuntimeError("this Llama is closed")
        self._model.check_process()
        return self._model

    @property
    def _history(self) -> History:
        held = self._held if self._m else None  # raises where it is closed, or was loaded before a fork
        if held is None:
            raise RuntimeError("this Llama has only a vocabulary")
        return held

    def __reduce__(self) -> NoReturn:
        raise TypeError("a loaded Llama cannot be pickled or copied; save_state() gives a state that can")

    def n_layer(self) -> int:
        """Return the number of blocks in the file."""
        return self._m.n_layer

    def n_ctx(self) -> int:
        """Return how many tokens the context holds."""
        return self._history.context.n_ctx

    def n_embd(self) -> int:
        """Return the width of the residual stream."""
        return self._m.n_embd

    def n_vocab(self) -> int:
        """Return the number of tokens in the vocabulary."""
        return self._m.n_vocab

    def token_bos(self) -> int:
        """Return the token that begins a text, -1 if there is none."""
        return self._m.bos

    def token_eos(self) -> int:
        """Return the token that ends a text, -1 if there is none."""
        return self._m.eos

    @property
    def adds_bos(self) -> bool:
        """Whether a text begins with token_bos() for this model."""
        return self._m.add_bos

    def token_nl(self) -> int:
        """Return the token of a line's end, -1 if there is none."""
        return self._m.nl

    @property
    def metadata(self) -> dict[str, str]:
        """The file's metadata as text, without arrays."""
        return self._m.metadata

    def pooling_type(self) -> int:
        """Return how the embeddings of tokens become those of a text: an enum llama_pooling_type."""
        return self._history.context.pooling_type

    @property
    def input_ids(self) -> npt.NDArray[np.intc]:
        """A copy of the tokens in the context, [n_tokens]."""
        return np.array(self._history.tokens, dtype=np.intc)

    @property
    def eval_tokens(self) -> deque[int]:
        """A copy of the tokens in the context."""
        return deque(self._history.tokens, maxlen=self.n_ctx())

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """The logits after each token in the context, [n_tokens, n_vocab]; without rows unless logits_all."""
        return self._history.scores[: self.n_tokens]

    @property
    def n_tokens(self) -> int:
        """How many tokens the context holds at present."""
        return len(self._history.tokens)

    @property
    def skip_layers(self) -> tuple[skipset.Unit, ...]:
        """What was left out when the model was loaded: blocks, then halves as (10, "attn")."""
        return tuple(skipset.parse_layers(self._m.skip_layers))

    @property
    def skip_scale(self) -> dict[int, float]:
        """The load-time factors that are not 1, by the first block of their gap."""
        return skipset.parse_scale(self._m.skip_scale)

    @property
    def disk_layers(self) -> tuple[int, ...]:
        """The blocks that stay in the file."""
        return tuple(self._m.disk_layers)

    @property
    def disk_scale(self) -> dict[int, float]:
        """The factors of disk blocks that are not 1, by block."""
        return skipset.parse_scale(self._m.disk_scale)

    def standby(self) -> None:
        """Hand the memory of disk blocks back to the system; what comes next reads them again."""
        self._m.standby()

    def disk_memory(self) -> DiskMemory:
        """Return how much of the disk blocks is mapped, and how much is in memory."""
        return DiskMemory(*(size / MIB for size in self._m.disk_memory))

    @property
    def mask(self) -> tuple[skipset.Unit, ...]:
        """What is left out at present, as skip_layers: what was left out at load, and by set_mask()."""
        return tuple(skipset.parse_layers(self._history.mask.text))

    def set_mask(self, layers: skipset.Layers | None, scale: skipset.Scale | None = None) -> None:
        """Leave out more blocks than at load, from the next token on and without reloading.

        A block has nothing for tokens that were decoded while it was masked. eval() over such tokens raises
        RuntimeError until they are removed (reset(), truncate()) or the block is masked again; completions
        start their prompt anew instead. A gap that the mask changes loses its load-time bypass.

        Args:
            layers: the blocks or the plan, as for the class; None or "none": only those left out at load. A
                plan brings its factors and bypasses, and needs the model's file.
            scale: factors of the gaps, as for the class.

        Raises:
            ValueError: a bad set or plan, or one that this architecture does not allow; the old mask stays.
        """
        text = skipset.layers_text(layers, "mask") or "none"
        self._history.set_mask(text, skipset.scale_text(scale, "mask scale"))

    @property
    def tiers(self) -> Mapping[str, str]:
        """What each tier leaves out, the model's own set among it, as a text for the flag, by its name."""
        tiers = self._tiers if self._m else {}  # raises where it is closed
        return MappingProxyType({name: mask.text or "none" for name, mask in tiers.items()})

    def _asked(self, layers: skipset.Layers) -> Mask:
        """Return the mask of a tier's name or a set; see `Llama.create_completion`."""
        if isinstance(layers, str) and layers in self._tiers:
            return self._tiers[layers]
        text = skipset.layers_text(layers, "skip_layers")
        check_tier(text, self._tiers)
        return self._history.find_mask(text, "skip_layers")

    def memory(self) -> dict[str, DeviceMemory]:
        """Return what model and context have allocated, by device name ("CPU" is the host), in MiB.

        With `dry_run`: what they would have.
        """
        breakdown = self._history.context.memory_breakdown()
        return {name: DeviceMemory(*(size / MIB for size in sizes)) for name, sizes in breakdown.items()}

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Return the tokens of a UTF-8 text.

        Args:
            text: UTF-8.
            add_bos: add the tokens that the model wants around a text.
            special: read the text of control tokens as these tokens.
        """
        return self._m.tokenize(text, add_bos, special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """Return the text of tokens, which may begin or end within a character.

        Args:
            tokens: the tokens.
            prev_tokens: accepted and ignored, as by llama-cpp-python's own tokenizer.
            special: write control tokens as their text instead of leaving them out.

        Raises:
            ValueError: a token that is not in the vocabulary.
        """
        text = self._m.detokenize(tokens, special)
        return text[1:] if len(tokens) and tokens[0] == self._m.bos and text[:1] == b" " else text

    def set_seed(self, seed: int) -> None:
        """Set the seed that completions without one of their own begin with."""
        self._seed = seed

    def reset(self) -> None:
        """Remove all tokens from the context."""
        self._history.truncate(0)

    def truncate(self, n_tokens: int) -> None:
        """Keep the first `n_tokens` tokens.

        They are evaluated again where the memory cannot go back to them: of a recurrent model, or one whose
        sliding window has moved on.

        Raises:
            ValueError: a number below 0.
            RuntimeError: evaluation failed. The context is empty then.
        """
        self._history.truncate(n_tokens)

    def eval(self, tokens: Sequence[int]) -> None:
        """Append tokens to what the context holds.

        Raises:
            ValueError: no token, or one that is not in the vocabulary.
            RuntimeError: the context is full, or the tokens in it were decoded under a mask that hides blocks
                which would run now. What the context held stays; after Ctrl-C too, unless its memory
                cannot go back, as a recurrent one.
        """
        self._history.eval(tokens)

    def logits(self, tokens: Sequence[int], *, first: int = 0) -> npt.NDArray[np.float32]:
        """Return the logits of tokens, evaluated in an empty context, which holds them afterwards.

        Args:
            tokens: the tokens.
            first: leave out the rows before this one.

        Returns:
            A copy, float32 [n_tokens - first, n_vocab]; row i is about the token after `tokens[first + i]`.

        Raises:
            ValueError, RuntimeError: as by eval().
        """
        history = self._history
        with history.lock:
            history.truncate(0)
            return history.logits(tokens, first)

    def hidden_states(self, tokens: Sequence[int]) -> HiddenStates:
        """Return the residual stream around each kept block, for tokens evaluated in an empty context.

        It needs `Llama(hidden_states=True)`, and an architecture whose graph names the stream as most do.

        Args:
            tokens: the tokens, which the context holds afterwards.

        Raises:
            ValueError: as by eval().
            RuntimeError: as by eval(), or an architecture that names or shapes the stream in another way.
        """
        return HiddenStates(*self._history.hidden_states(tokens))

    def trace(self, tokens: Sequence[int], *, first: int = 0) -> Trace:
        """Return what enters each kept block and the logits, for tokens evaluated in an empty context.

        Args:
            tokens: the tokens, which the context holds afterwards.
            first: leave out the logits before this row.

        Raises:
            ValueError, RuntimeError: as by hidden_states().
        """
        return Trace(*self._history.trace(tokens, first))

    def resume(self, stream: npt.NDArray[np.float32], *, first: int = 0) -> npt.NDArray[np.float32]:
        """Return the logits that follow from the residual stream where the first kept block begins.

        With blocks 0 to l - 1 masked and what trace() says enters block l, these are the logits of trace(),
        unless the architecture hands blocks more than the stream; compare them before relying on it. The
        context is empty afterwards.

        Args:
            stream: rows of the stream, float32 [n_tokens, n_embd].
            first: leave out the logits before this row.

        Returns:
            A copy, float32 [n_tokens - first, n_vocab].

        Raises:
            ValueError: another shape.
            RuntimeError: an architecture that takes other input, or llama.cpp fails.
        """
        return self._history.resume(stream, first)

    def save_state(self) -> LlamaState:
        """Return what the context holds; load_state() brings it back, in this object or a like one.

        Raises:
            RuntimeError: a mask was taken off that some of the tokens were decoded under, or the model's file
                cannot be read any more, whose identity goes with the state.
        """
        return self._history.save(self._seed, self._m.weights_id)

    def load_state(self, state: LlamaState) -> None:
        """Hold what save_state() returned; a token has to be evaluated before sample().

        Raises:
            RuntimeError: the state is of another model's file, skip set, mask or scale, or too long. The
                context is empty then. Other arguments of the class, an adapter among them, are not compared.
        """
        self._history.load(state, self._m.weights_id)
        self._seed = state.seed
