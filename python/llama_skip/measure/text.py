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

SPREAD = 4 << 20  # bytes of a file that windows are spread over, or more where they need more
SEED = 4321  # not the text that a score calibrates on: what was chosen by it is judged here


def read_text(
    llm: Llama,
    path: StrPath | None,
    *,
    n_ctx: int,
    n_windows: int,
    n_written: int = N_WINDOWS,
    spread: bool = False,
    seed: int = SEED,
    show_progress: bool = False,
) -> tuple[list[int], TextInfo]:
    """Return windows of a text file, the first ones, or of what the model itself writes, and their origin.

    Args:
        llm: the full model, with a context of n_ctx tokens.
        path: the file; None: the model's own writing.
        n_ctx: tokens in a window.
        n_windows: windows at most; 0: all of the file.
        n_written: windows of the model's own writing.
        spread: take windows from all over the file, of which at most the first 4 MiB or so are read, since
            windows next to each other are on the same subject.
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
    least = n_windows * n_ctx * 16  # no tokenizer averages 16 bytes a token on a text
    with Path(path).open("rb") as file:
        tokens = llm.tokenize(file.read(max(least, SPREAD) if spread and least else least or -1))
    if len(tokens) < n_ctx:
        raise ValueError(
            f"{path}: {len(tokens)} tokens do not fill a window of {n_ctx}: "
            "give a longer text or a smaller context (-c)"
        )
    n_all = len(tokens) // n_ctx
    n_used = min(n_windows or n_all, n_all)
    first = (i * n_all // n_used if spread else i for i in range(n_used))
    used = [token for i in first for token in tokens[i * n_ctx : (i + 1) * n_ctx]]
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
