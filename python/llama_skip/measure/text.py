"""The text that something is measured on: a file's, or the model's own writing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llama_skip.files.identity import TextInfo
from llama_skip.files.store import StrPath
from llama_skip.llama.llama import Llama
from llama_skip.measure.own_writing import N_WINDOWS, own_writing, own_writing_steps
from llama_skip.progress import progress

SEED = 4321  # not the text that a score calibrates on: what was chosen by it is judged here


def read_text(
    llm: Llama,
    path: StrPath | None,
    *,
    n_ctx: int,
    n_windows: int,
    n_written: int = N_WINDOWS,
    seed: int = SEED,
    show_progress: bool = False,
) -> tuple[list[int], TextInfo]:
    """Return the first windows of a text file, or of what the model itself writes, and where they are from.

    Args:
        llm: the full model, with a context of n_ctx tokens.
        path: the file; None: the model's own writing.
        n_ctx: tokens in a window.
        n_windows: windows at most; 0: all of the file.
        n_written: windows of the model's own writing.
        seed: of that writing.
        show_progress: show a bar while the model writes.

    Raises:
        ValueError: a text that fills no window.
        RuntimeError: a model that writes next to nothing.
        OSError: a file that cannot be read.
    """
    if path is None:
        with progress(own_writing_steps(n_ctx, n_written), shown=show_progress) as bar:
            bar.say("writing the text")
            written = own_writing(llm, n_ctx, bar, n_written, seed=seed)
        return written.tokens, text_info(written.tokens, n_ctx, "self", written.source)
    with Path(path).open("rb") as file:
        # no tokenizer averages 16 bytes a token on a text
        tokens = llm.tokenize(file.read(n_windows * n_ctx * 16 or -1))
    if len(tokens) < n_ctx:
        raise ValueError(
            f"{path}: {len(tokens)} tokens do not fill a window of {n_ctx}: "
            "give a longer text or a smaller context (-c)"
        )
    n_used = min(n_windows or len(tokens), len(tokens) // n_ctx)
    used = tokens[: n_used * n_ctx]
    return used, text_info(used, n_ctx, "file", Path(path).name)


def text_info(tokens: Sequence[int], n_ctx: int, source: str, name: str) -> TextInfo:
    """Return the description of whole windows of tokens."""
    n_windows = len(tokens) // n_ctx
    return TextInfo(
        source=source,
        name=name,
        sha256=hashlib.sha256(np.array(tokens, dtype="<i4").tobytes()).hexdigest(),
        n_tokens=len(tokens),
        n_ctx=n_ctx,
        n_windows=n_windows,
        n_scored=n_windows * (n_ctx - n_ctx // 2 - 1),
    )
