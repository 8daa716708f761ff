"""Published ways of choosing blocks, independent of llama_skip: numpy on dequantised weights.

    python benchmarks/sleb.py MODEL -f TEXT --blocks K -o sleb.json [--tokens N] [--ctx N]

    path        exhaustive greedy search by perplexity (SLEB, Song et al. 2024): at each step every block that
                is left is tried over the whole text, and the one without which perplexity is lowest goes
    one_shot    perplexity without each single block: the first step of that search
    influence   1 - cosine of a block's input and output, mean over all tokens (ShortGPT, Men et al. 2024)
    angular     arccos(cosine) / pi between the inputs of blocks l and l + n (Gromov et al. 2024), mean over
                all tokens, and angular_last over the last token of each window, as in the paper

Perplexity is llama-perplexity's: windows of N tokens, of which the second half but its first is scored. The
search is exact: a candidate is evaluated from its block on, over the stream that the blocks before it, which
it does not change, left there. The file is written after each candidate, and a run goes on from it. Only the
tokenizer is llama_skip's, unless --ids names a JSON list of tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # each thread of the pool multiplies by itself

import numpy as np
import numpy.typing as npt
from reference import Array, Model, load

GROUP = 2  # windows that a thread evaluates together


class Search:
    """The text's windows in groups, and for each group the stream before every block of what is left."""

    def __init__(
        self, model: Model, windows: npt.NDArray[np.int64], left_out: list[int], n_threads: int
    ) -> None:
        self.model = model
        self.left_out = list(left_out)
        self.groups = [windows[i : i + GROUP] for i in range(0, len(windows), GROUP)]
        self.pool = ThreadPoolExecutor(n_threads)
        self.streams = list(self.pool.map(lambda group: self._streams([model.embed(group)]), self.groups))

    @property
    def kept(self) -> list[int]:
        return [il for il in range(len(self.model.blocks)) if il not in self.left_out]

    def _streams(self, known: list[Array]) -> list[Array]:
        """Return the streams before each block and after the last; `known` are the first of them."""
        streams = list(known)
        for il in range(len(known) - 1, len(self.model.blocks)):
            streams.append(streams[il] if il in self.left_out else self.model.block(il, streams[il]))
        return streams

    def _surprisal(self, group: int, without: int | None) -> npt.NDArray[np.float64]:
        x = self.streams[group][-1 if without is None else without]
        for il in self.kept:
            if without is not None and il > without:
                x = self.model.block(il, x)
        first = x.shape[1] // 2
        targets = [window[first + 1 :] for window in self.groups[group]]
        parts = [self.model.surprisal(row[first:-1], t) for row, t in zip(x, targets, strict=True)]
        return np.concatenate(parts)

    def surprisal(self, without: int | None = None) -> Callable[[], npt.NDArray[np.float64]]:
        """Begin to evaluate what is left without one more block; the result waits for it."""
        parts = [self.pool.submit(self._surprisal, i, without) for i in range(len(self.groups))]
        return lambda: np.concatenate([part.result() for part in parts])

    def remove(self, block: int) -> None:
        self.left_out.append(block)
        known = [streams[: block + 1] for streams in self.streams]
        self.streams = list(self.pool.map(self._streams, known))


def perplexity(surprisal: npt.NDArray[np.float64]) -> dict[str, float]:
    value = float(np.exp(surprisal.mean()))
    error = value * float(surprisal.std(ddof=1)) / len(surprisal) ** 0.5
    return {"perplexity": value, "perplexity_error": error, "n_scored": len(surprisal)}


def cosines(streams: list[list[Array]]) -> npt.NDArray[np.float64]:
    """Return the cosine of the streams before each pair of blocks, [n_layer + 1, n_layer + 1, n_tokens]."""
    groups = []
    for group in streams:
        x = np.stack(group).reshape(len(group), -1, group[0].shape[-1])
        x = x / np.linalg.norm(x, axis=-1, keepdims=True)
        groups.append(np.einsum("itd,jtd->ijt", x, x, dtype=np.float64, optimize=True))
    return np.concatenate(groups, axis=-1).clip(-1, 1)


def distances(streams: list[list[Array]], n_ctx: int) -> dict[str, Any]:
    """Return block influence and both angular distances of the model whose streams these are."""
    cosine = cosines(streams)
    angle = np.arccos(cosine) / np.pi
    last = angle[..., n_ctx - 1 :: n_ctx].mean(axis=-1)
    n = len(cosine) - 1
    return {
        "influence": [1 - float(cosine[a, b].mean()) for a, b in pairwise(range(n + 1))],
        "angular": [[float(angle[i, j].mean()) for j in range(i + 1, n + 1)] for i in range(n)],
        "angular_last": [[float(last[i, j]) for j in range(i + 1, n + 1)] for i in range(n)],
    }


def search(
    model: Model,
    windows: npt.NDArray[np.int64],
    n_blocks: int,
    result: dict[str, Any],
    save: Callable[[], None],
    n_threads: int,
) -> None:
    """Fill `result` with all that the module's docstring names, from where it stands; save() keeps it."""
    state = Search(model, windows, [step["block"] for step in result["path"]], n_threads)
    try:
        if not result["path"]:
            result |= {"full": perplexity(state.surprisal()()), **distances(state.streams, windows.shape[1])}
            save()
        while len(result["path"]) < n_blocks:
            step(state, result, save)
    finally:
        state.pool.shutdown(cancel_futures=True)


def step(state: Search, result: dict[str, Any], save: Callable[[], None]) -> None:
    """Try every block that is left, but those in `result` already, and take the best one out."""
    n_done, tried = len(result["path"]), result["trying"]
    waiting = {il: state.surprisal(il) for il in state.kept if str(il) not in tried}
    for il, wait in waiting.items():
        tried[str(il)] = perplexity(wait())
        print(f"step {n_done + 1}: without {il}: {tried[str(il)]['perplexity']:.4f}", file=sys.stderr)
        save()
    best = min(tried, key=lambda il: tried[il]["perplexity"])
    if not n_done:
        result["one_shot"] = [tried[str(il)]["perplexity"] for il in state.kept]
    result["path"].append({"block": int(best), **tried[best]})
    result["trying"] = {}
    save()
    state.remove(int(best))


def tokenize(model: Path, text: bytes) -> tuple[list[int], int | None]:
    """Return the text's tokens, and the BOS where the model wants one."""
    from llama_skip import Llama

    with Llama(model, vocab_only=True, verbose=False) as llm:
        return llm.tokenize(text), llm.token_bos() if llm.adds_bos else None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="GGUF of architecture llama or qwen2")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-f", "--file", type=Path, metavar="TEXT")
    source.add_argument("--ids", type=Path, metavar="JSON", help="list of tokens")
    parser.add_argument("--bos", type=int, metavar="ID", help="with --ids: first token of each window")
    parser.add_argument("--tokens", type=int, default=4096, metavar="N", help="of the text (default: 4096)")
    parser.add_argument("--ctx", type=int, default=512, metavar="N", help="tokens in a window (default: 512)")
    parser.add_argument("--blocks", type=int, required=True, metavar="K", help="to leave out")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="JSON")
    args = parser.parse_args(argv)

    if args.ids:
        tokens, bos = json.loads(args.ids.read_text()), args.bos
    else:
        tokens, bos = tokenize(args.model, args.file.read_bytes())
    n = min(args.tokens, len(tokens)) // args.ctx
    if n == 0:
        raise SystemExit(f"error: {len(tokens)} tokens fill no window of {args.ctx}")
    windows = np.array(tokens[: n * args.ctx]).reshape(n, args.ctx)
    digest = hashlib.sha256(windows.astype("<i4").tobytes()).hexdigest()
    if bos is not None:
        windows[:, 0] = bos
    key = {
        "model": {"name": args.model.name, "bytes": args.model.stat().st_size},
        "text": {
            "name": (args.file or args.ids).name,
            "tokens_sha256": digest,
            "n_tokens": windows.size,
            "n_ctx": args.ctx,
        },
    }
    result: dict[str, Any] = {"format": "llama-skip-reference", "version": 1, **key, "path": [], "trying": {}}
    if args.output.exists():
        old = json.loads(args.output.read_text())
        if any(old.get(name) != value for name, value in key.items()):
            raise SystemExit(f"error: {args.output}: of another model or text")
        result = old

    def save() -> None:
        beside = args.output.with_name(args.output.name + ".part")
        beside.write_text(json.dumps(result, indent=1))
        beside.replace(args.output)

    if len(result["path"]) < args.blocks:
        search(load(args.model), windows, args.blocks, result, save, args.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
