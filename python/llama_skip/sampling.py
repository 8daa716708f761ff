"""Sampling options with llama-cpp-python's names, as llama.cpp's sampler chain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llama_skip import _core

CHAIN = ["penalties", "top_k", "typ_p", "top_p", "min_p", "temperature"]


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
    grammar: str | None
    logit_bias: Mapping[int, float] | None = None

    def sampler(self, model: _core.Model, *, seed: int, last_n_tokens_size: int) -> _core.Sampler:
        """Return a new sampler.

        Args:
            model: whose tokens to choose from.
            seed: of its random numbers.
            last_n_tokens_size: generated tokens that the penalties look back at.

        Raises:
            ValueError: a number that llama.cpp does not allow, or a grammar it cannot parse.
        """
        params = _core.SamplerParams()
        params.samplers = CHAIN if self.temperature >= 0 else CHAIN[:1]
        params.seed = seed & 0xFFFFFFFF
        params.temp = self.temperature
        params.top_k = self.top_k
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
        params.grammar = self.grammar or ""
        params.logit_bias = {int(token): float(bias) for token, bias in (self.logit_bias or {}).items()}
        return _core.Sampler(model, params)
