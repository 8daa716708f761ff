"""Size, speed, perplexity and first words of one loaded model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from llama_skip.llama.llama import Llama
from llama_skip.measure import perplexity
from llama_skip.measure.own_writing import Text
from llama_skip.progress import Progress
from llama_skip.skipset import whole

PROMPT = "Once upon a time, a small boat"
N_PROMPT = 256
N_WRITE = 48
N_STEPS = 3  # of the progress bar for the speeds of a model


@dataclass(frozen=True)
class Row:
    """One line of the demo's table; sizes in MiB, speeds in tokens per second, the medians of all rounds."""

    skip_layers: str
    n_kept: int
    n_layer: int
    weights: float
    kv: float
    prompt_speed: float
    generation_speed: float
    perplexity: float
    perplexity_error: float
    n_scored: int
    writes: str


def measure(llm: Llama, name: str, text: Text, bar: Progress) -> Row:
    """Return what a model is like, without its speeds.

    Args:
        llm: a model whose context holds a window of the text.
        name: of what is left out.
        text: to measure perplexity on.
        bar: gets a step for each window.
    """
    bos = llm.token_bos() if llm.adds_bos else None
    ppl = perplexity.measure(llm, text.tokens, n_ctx=text.n_ctx, bos=bos, on_window=bar.step)
    memory = llm.memory().values()
    return Row(
        skip_layers=name,
        n_kept=llm.n_layer() - len(whole(llm.skip_layers)),
        n_layer=llm.n_layer(),
        weights=sum(device.weights for device in memory),
        kv=sum(device.kv for device in memory),
        prompt_speed=0.0,
        generation_speed=0.0,
        perplexity=ppl.value,
        perplexity_error=ppl.error,
        n_scored=ppl.n_tokens,
        writes=single_tokens(llm, N_WRITE)[1],
    )


def speed(llm: Llama, tokens: Sequence[int], bar: Progress, *, n_runs: int = 2) -> tuple[float, float, str]:
    """Return tokens per second of a prompt and of single tokens, the best of the runs, and what is written.

    Args:
        llm: a model whose context holds at least 32 tokens.
        tokens: what the prompt is made of.
        bar: gets a step for each run, and one more.
        n_runs: of each.
    """
    prompt_speed = max(_prompt_speed(llm, tokens, bar) for _ in range(n_runs))
    generation_speed, writes = max(single_tokens(llm, N_WRITE) for _ in range(n_runs))
    bar.step()
    return prompt_speed, generation_speed, writes


def _prompt_speed(llm: Llama, tokens: Sequence[int], bar: Progress) -> float:
    prompt = tokens[: min(llm.n_ctx(), N_PROMPT)]
    start = time.perf_counter()
    llm.logits(prompt, first=len(prompt) - 1)  # waits for a device, which eval() may leave at work
    elapsed = time.perf_counter() - start
    bar.step()
    return len(prompt) / elapsed


def single_tokens(llm: Llama, n_tokens: int) -> tuple[float, str]:
    """Return the speed of single tokens, and what the model writes when it always takes the likeliest one."""
    prompt = llm.tokenize(PROMPT.encode())
    n_tokens = min(n_tokens, llm.n_ctx() - len(prompt) - 1)
    stream = llm.generate(prompt, temp=0.0)
    tokens = [next(stream)]
    start = time.perf_counter()
    tokens += islice(stream, n_tokens)
    elapsed = time.perf_counter() - start
    return n_tokens / elapsed, llm.detokenize(tokens).decode("utf-8", "ignore")
