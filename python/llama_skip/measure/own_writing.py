"""The text whose perplexity the demo measures."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from llama_skip.llama.llama import Llama
from llama_skip.progress import Progress

PROMPTS = [
    "The lighthouse at the end of the harbour was built",
    "To bake a simple loaf of bread, you need",
    "def count_words(path):\n    ",
    "Dear neighbours,\nas most of you know,",
    "Plants turn sunlight into sugar. First,",
    "Question: Why is the sky blue?\nAnswer:",
    "The train was late again, and Maria",
]
LENGTH = 110  # tokens of each piece
SEED = 1234
N_WINDOWS = 3
LEAST = 64  # tokens of a text


class Text(NamedTuple):
    """A text, where it is from, and the windows to cut it into."""

    tokens: list[int]
    source: str
    n_ctx: int


def own_writing(
    llm: Llama, n_ctx: int, bar: Progress, n_windows: int = N_WINDOWS, *, seed: int = SEED
) -> Text:
    """Return a few windows of what the model itself writes: it needs no file, and no network."""
    n_pieces = 10 * own_writing_steps(n_ctx, n_windows)
    pieces: list[str] = []
    tokens: list[int] = []
    for i, prompt in enumerate(cycle(PROMPTS)):
        if len(tokens) >= n_windows * n_ctx:
            break
        if i == n_pieces:
            raise RuntimeError("the model writes too little for a text, name one with -f")
        result = llm.create_completion(
            prompt,
            max_tokens=LENGTH,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_p=0.05,
            seed=seed + i,
            echo=True,
        )
        assert isinstance(result, dict)
        pieces.append(result["choices"][0]["text"])
        tokens = llm.tokenize("\n\n".join(pieces).encode())
        bar.step()
    n_prompts = min(len(pieces), len(PROMPTS))
    source = f"what the unpruned model itself writes after {n_prompts} mixed prompts, seed {seed}"
    return Text(tokens[: n_windows * n_ctx], source, n_ctx)


def own_writing_steps(n_ctx: int, n_windows: int = N_WINDOWS) -> int:
    """Return about how many pieces own_writing() needs."""
    return -(-n_windows * n_ctx // LENGTH)


def from_file(llm: Llama, path: str, n_ctx: int, n_windows: int) -> Text:
    """Return the first windows of a text file; one too short for two windows is cut into two shorter ones.

    Raises:
        ValueError: a text of fewer than 64 tokens.
        OSError: a file that cannot be read.
    """
    with Path(path).open("rb") as file:
        content = file.read(n_windows * n_ctx * 16)  # no tokenizer averages 16 bytes a token on a text
    tokens = llm.tokenize(content)
    if len(tokens) < LEAST:
        raise ValueError(f"{path}: {len(tokens)} tokens are too few for perplexity, the least is {LEAST}")
    n_ctx = min(n_ctx, len(tokens) // 2)
    n_used = min(n_windows, len(tokens) // n_ctx)
    return Text(tokens[: n_used * n_ctx], f"{path}, its first {n_used} windows of {n_ctx} tokens", n_ctx)
