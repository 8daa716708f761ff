"""The arguments of commands that load a model, named as in llama.cpp's tools."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from llama_skip.cli.command import Parser, UsageError
from llama_skip.model.options import CACHE_TYPES, FLASH
from llama_skip.score.sizes import PER


def add_text_options(parser: Parser, n_windows: int) -> None:
    """Add the text to measure on; `n_windows` is the default of `--windows`."""
    add = parser.add_argument
    add("-f", "--file", metavar="TEXT", help="text to measure on (default: the model's own writing)")
    add(
        "--windows",
        "--chunks",
        metavar="N",
        type=int,
        default=n_windows,
        help=f"windows of TEXT at most, 0: all (default: {n_windows})",
    )


def add_halves(parser: Parser) -> None:
    """Add what lets halves of blocks go."""
    add = parser.add_argument
    add(
        "--halves",
        action="store_true",
        help="let attention or feed-forward of a block go alone while choosing, what costs least for what it "
        "saves first, until that is as much as K blocks take on average",
    )
    add(
        "--per",
        choices=PER,
        help="with --halves: what is saved, bytes of weights, of the KV cache, or the time of a single token "
        f"(default: {PER[0]})",
    )


def score_name(model: str, *, heal: bool, halves: bool, per: str | None) -> str:
    """Return the name of a score file where none is given."""
    kind = f"{'.heal' if heal else ''}{'.halves' if halves else ''}"
    kind += f"-{per}" if per not in (None, PER[0]) else ""
    return f"{Path(model).stem}{kind}.score.json"


def add_model_options(parser: Parser, *, ctx_size: int = 512) -> None:
    """Add what model_options() reads; `ctx_size` is the default of `-c`."""
    add = parser.add_argument_group("loading").add_argument
    add(
        "-c",
        "--ctx-size",
        metavar="N",
        type=int,
        default=ctx_size,
        help=f"tokens of context (default: {ctx_size})",
    )
    add("-b", "--batch-size", metavar="N", type=int, help="tokens given to llama.cpp at once (default: 512)")
    add("-ub", "--ubatch-size", metavar="N", type=int, help="tokens computed at once (default: 512)")
    add("-t", "--threads", metavar="N", type=int, help="threads (default: one a processor)")
    add(
        "-ngl", "--n-gpu-layers", metavar="N", type=int, default=-1, help="kept blocks on GPUs (default: all)"
    )
    add(
        "-ctk",
        "--cache-type-k",
        choices=CACHE_TYPES,
        default="f16",
        help="type of cached keys (default: f16)",
    )
    add(
        "-ctv",
        "--cache-type-v",
        choices=CACHE_TYPES,
        default="f16",
        help="type of cached values (default: f16)",
    )
    add("-fa", "--flash-attn", choices=FLASH, default="auto", help="flash attention (default: auto)")
    add("-dev", "--device", metavar="DEV,...", help="devices to use, see `llama-skip doctor`")
    add("--rpc", metavar="HOST:PORT,...", help="ggml-rpc-server processes whose devices to use first")
    add(
        "--skip-untested", action="store_true", help="leave blocks out of architectures not tested for it too"
    )


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return keyword arguments for `Llama`.

    Raises:
        UsageError: a size out of range.
    """
    for name in ("ctx_size", "batch_size", "ubatch_size", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')}: {value} is too small, the least is 1")
    n_batch = args.batch_size or 512
    return {
        "n_ctx": args.ctx_size,
        "n_batch": n_batch,
        "n_ubatch": min(args.ubatch_size or 512, n_batch),
        "n_threads": args.threads,
        "n_threads_batch": args.threads,
        "n_gpu_layers": args.n_gpu_layers,
        "type_k": CACHE_TYPES[args.cache_type_k],
        "type_v": CACHE_TYPES[args.cache_type_v],
        "flash_attn": FLASH[args.flash_attn],
        "devices": args.device,
        "rpc_servers": args.rpc,
        "skip_untested": args.skip_untested,
        "verbose": False,
    }
