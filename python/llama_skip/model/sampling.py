"""Sampling options with llama-cpp-python's names, as llama.cpp's sampler chain, and how a token is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llama_skip import _core

Logits = npt.NDArray[np.float32]
TokenIds = npt.NDArray[np.intc]
LogitsProcessor = Callable[[TokenIds, Logits], Logits]
StoppingCriterion = Callable[[TokenIds, Logits], bool]


class LogitsProcessorList(list[LogitsProcessor]):
    """Processors that are applied one after the other; any iterable of them will do as well."""

    def __call__(self, input_ids: TokenIds, scores: Logits) -> Logits:
        """Apply all of them to the logits [n_vocab] that follow `input_ids`."""
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class StoppingCriteriaList(list[StoppingCriterion]):
    """Criteria of which one is enough; any iterable of them will do as well."""

    def __call__(self, input_ids: TokenIds, logits: Logits) -> bool:
        """Return whether any of them says stop."""
        return any(criterion(input_ids, logits) for criterion in self)


class MinTokensLogitsProcessor:
    """Makes one token, such as token_eos(), impossible until `min_tokens` were generated."""

    def __init__(self, min_tokens: int, token_eos: int) -> None:
        self.min_tokens = min_tokens
        self.token_eos = token_eos
        self.prompt_tokens: int | None = None

    def __call__(self, input_ids: TokenIds, scores: Logits) -> Logits:
        """Return the logits [n_vocab] that follow `input_ids`, changed in place."""
        if self.prompt_tokens is None:
            self.prompt_tokens = len(input_ids)
        if len(input_ids) - self.prompt_tokens < self.min_tokens:
            scores[self.token_eos] = -np.inf
        return scores


class TokenLogprobs(NamedTuple):
    """The log-probability of a chosen token, and the most probable tokens with theirs, in nats."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


def logits_to_logprobs(logits: npt.ArrayLike, axis: int = -1) -> Logits:
    """Return log-probabilities in nats, float32, of logits: their log-softmax along `axis`."""
    values = np.asarray(logits, dtype=np.float32)
    maxima = np.amax(values, axis=axis, keepdims=True)
    shifted = values - np.where(np.isfinite(maxima), maxima, np.float32(0))
    with np.errstate(divide="ignore"):  # log(0) is -inf
        logprobs: Logits = shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))
    return logprobs


def token_logprobs(logits: Logits, token: int, n_top: int) -> TokenLogprobs:
    """Return what `logits` [n_vocab] say about `token`, and their `n_top` most probable tokens in order."""
    logprobs = logits_to_logprobs(logits)
    best = (
        np.argpartition(logprobs, -n_top)[-n_top:] if 0 < n_top < logprobs.size else np.arange(logprobs.size)
    )
    # equal ones as in llama-cpp-python: the higher token first
    order = sorted(zip(logprobs[best].tolist(), best.tolist(), strict=True), reverse=True)[:n_top]
    return TokenLogprobs(token, float(logprobs[token]), [(i, logprob) for logprob, i in order])


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose a token; see `Llama.create_completion` for the options."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    mirostat_mode: int
    mirostat_tau: float
    mirostat_eta: float
    grammar: str | None = None
    logit_bias: Mapping[int, float] | None = None
    logits_processor: Iterable[LogitsProcessor] | None = None
    chat: _core.ChatPrompt | None = None

    def chain(self) -> list[str]:
        """Return llama.cpp's names of the samplers, in llama-cpp-python's order."""
        if self.temperature < 0:
            return ["penalties"]
        return ["penalties", "top_k", "typ_p", "top_p", "min_p", "temperature"]

    def sampler(self, model: _core.Model, *, seed: int, last_n_tokens_size: int) -> _core.Sampler:
        """Return a new sampler.

        Args:
            model: whose tokens to choose from.
            seed: of its random numbers.
            last_n_tokens_size: generated tokens that the penalties look back at.

        Raises:
            ValueError: a number that llama.cpp does not allow, a grammar it cannot parse, or a bias of a
                token that is not in the vocabulary.
        """
        bias = {int(token): float(value) for token, value in (self.logit_bias or {}).items()}
        for token in bias:
            if not 0 <= token < model.n_vocab:
                raise ValueError(f"logit_bias: token {token} is not within 0-{model.n_vocab - 1}")
        params = _core.SamplerParams()
        params.samplers = self.chain()
        params.seed = seed & 0xFFFFFFFF
        params.temp = self.temperature
        # at temperature 0 no other token is left for the softmax behind the chain
        params.top_k = self.top_k if self.temperature != 0 else 1
        params.top_p = self.top_p
        params.min_p = self.min_p
        params.typ_p = self.typical_p
        params.min_keep = 1
        params.penalty_last_n = last_n_tokens_size
        params.penalty_repeat = self.repeat_penalty
        params.penalty_freq = self.frequency_penalty
        params.penalty_present = self.presence_penalty
        params.mirostat = self.mirostat_mode if self.temperature > 0 else 0
        params.mirostat_tau = self.mirostat_tau
        params.mirostat_eta = self.mirostat_eta
        params.logit_bias = bias
        if self.chat is not None:
            params.set_chat(model, self.chat)
        if self.grammar and "\0" in self.grammar:
            raise ValueError("grammar: it has a NUL")
        if self.grammar:  # which the templates do not always pass on
            params.grammar = self.grammar
        return _core.Sampler(model, params)


class Chooser:
    """Chooses the tokens of one generation by the last logits of a context, and notes their probabilities."""

    def __init__(
        self,
        sampler: _core.Sampler,
        *,
        processors: Iterable[LogitsProcessor] | None = None,
        stopping_criteria: Iterable[StoppingCriterion] | None = None,
        n_top: int | None = None,
    ) -> None:
        """Args:
        sampler: of the generation.
        processors: what changes the logits before the sampler sees them.
        stopping_criteria: what ends the generation.
        n_top: how many of the most probable tokens to note with each token; None: note nothing.

        Raises:
            ValueError: `n_top` below 0.
        """
        if n_top is not None and n_top < 0:
            raise ValueError(f"logprobs: {n_top} is below 0")
        self.logprobs: list[TokenLogprobs] = []
        self.stopped = False
        self._sampler = sampler
        self._processors = list(processors or [])
        self._criteria = list(stopping_criteria or [])
        self._n_top = n_top

    def choose(self, context: _core.Context, tokens: Sequence[int]) -> int | None:
        """Return the token after `tokens`, or None where a criterion ends the generation."""
        if not self._processors and not self._criteria and self._n_top is None:
            return self._sampler.sample(context, -1)
        logits = context.logits(-1)
        ids = np.array(tokens, dtype=np.intc)
        if any(criterion(ids, logits) for criterion in self._criteria):
            self.stopped = True
            return None
        scores = logits
        if self._processors:
            scores = logits.copy()
            for processor in self._processors:
                scores = processor(ids, scores)
                if scores is None:
                    raise TypeError("a logits processor returned None instead of logits")
        token = self._sampler.sample(context, -1, scores if self._processors else None)
        if self._n_top is not None:
            self.logprobs.append(token_logprobs(logits, token, self._n_top))
        return token
