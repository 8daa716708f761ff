"""What a depth for each request costs, and what it gives: llama-server with tiers.

    python benchmarks/tiers.py MODEL --skip-tier NAME=SPEC ... [-f TEXT] [--only PART ...] [--png FILE]

    switch   two requests at tiers of as many blocks, whose tokens alternate, against one after
             the other: tokens/s                                                       at least 0.95
    plain    requests that name no tier: ours with tiers against the unpatched llama-server where
             LLAMA_SKIP_STOCK has one, else ours without tiers: tokens/s of prompts
             and of generation                                                         at least 0.98
    fair     8 clients who ask without end, 4 of them at full depth and 4 at the
             shallowest tier: the slower ones' share of all tokens                     at least 0.4
             and a ninth one at a depth of its own: the longest that it waits for a token
    load     requests at a rate that full depth cannot serve, without and with --skip-load: latency and
             throughput; of the gain that the bytes of the blocks promise              at least 0.8
             all requests are answered, and at full depth again when it is over

Ratios are medians of runs in turn, as in speed.py; give it an idle machine. What bytes promise is for
generation: the prompt is processed at full depth, and its share of the time is measured. --png draws the
latencies under load. The exit code is 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import load
import probe
import speed
import texts
from llama_skip.files.identity import identify
from llama_skip.files.store import replacing
from llama_skip.files.table import markdown
from llama_skip.model.processors import n_processors

from comparison import builds
from comparison.server import Server, server

LEAST = {"switch": 0.95, "plain": 0.98, "fair": 0.4}
N_CLIENTS = 8
N_PROMPT = 2048  # bytes
N_ANSWER = 48  # tokens of the answers that are timed

Row = dict[str, Any]


def tier_flags(tiers: dict[str, str]) -> list[str]:
    return [word for name, spec in tiers.items() for word in ("--skip-tier", f"{name}={spec}")]


def passages(args: argparse.Namespace, n: int, size: int) -> list[str]:
    return [text.decode(errors="ignore") for _, text in texts.passages(args.file, n, size)]


def completion(running: Server, prompt: str, n: int, **more: Any) -> dict[str, Any]:
    """Return the answer to a prompt that nothing is reused for."""
    body = {"prompt": prompt, "n_predict": n, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    answer: dict[str, Any] = running.ask("/completion", body | more)
    assert "content" in answer, answer
    return answer


def switch(model: Path, tiers: dict[str, str], args: argparse.Namespace) -> list[Row]:
    """Two tiers of a tenth of the blocks, whatever the tiers of the command are."""
    n = max(1, identify(model).n_layer // 10)
    depths = {"one": f"1-{n}", "other": f"{n + 1}-{2 * n}"}
    prompts = dict(zip(depths, passages(args, 2, 64), strict=True))

    def one(name: str) -> None:
        completion(running, prompts[name], N_ANSWER, skip_layers=name)

    def rate(workers: int) -> float:
        start = time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, depths))
        return 2 * N_ANSWER / (time.perf_counter() - start)

    size = ("-np", 2, "-c", 1024, "-t", args.threads)
    with server(builds.ours(), model, *size, *tier_flags(depths)) as running:
        result = speed.paired(lambda: rate(2), lambda: rate(1), args.runs)
    return [ratio("switch", "two tiers in turn / one after the other, tokens/s", result)]


def plain(model: Path, tiers: dict[str, str], args: argparse.Namespace) -> list[Row]:
    """Requests that name no tier."""
    folder = os.environ.get("LLAMA_SKIP_STOCK")
    has_stock = folder is not None and (Path(folder) / "llama-server").is_file()
    other, name = (builds.stock(), "unpatched") if has_stock else (builds.ours(), "ours without tiers")
    prompt = passages(args, 1, N_PROMPT)[0]
    size = ("-c", 2048, "-t", args.threads)

    def rate(running: Server, key: str, n: int) -> Callable[[], float]:
        return lambda: float(completion(running, prompt, n)["timings"][f"{key}_per_second"])

    rows = []
    with (
        server(builds.ours(), model, *size, *tier_flags(tiers)) as mine,
        server(other, model, *size) as theirs,
    ):
        for what, key, n in (("prompt", "prompt", 1), ("generation", "predicted", N_ANSWER)):
            result = speed.paired(rate(mine, key, n), rate(theirs, key, n), args.runs)
            rows.append(ratio("plain", f"{what}, no tier named / {name}, tokens/s", result))
    return rows


def client(running: Server, prompt: str, depth: str, until: float) -> list[list[float]]:
    """Ask without end; return when each request began and its tokens came, in seconds."""
    found = []
    body = {"prompt": prompt, "n_predict": N_ANSWER, "temperature": 0, "ignore_eos": True}
    while time.perf_counter() < until:
        times = [time.perf_counter()]
        found.append(times)
        with contextlib.closing(running.stream("/completion", body | {"skip_layers": depth})) as events:
            for event in events:
                times += [time.perf_counter()] * len(event.get("tokens", ()))
                if time.perf_counter() > until:
                    break
    return found


def fair(model: Path, tiers: dict[str, str], args: argparse.Namespace) -> list[Row]:
    """Half of the clients at full depth, half at the tier of which the least is left, and a lone one."""
    left = {name: speed.bytes_per_token(model, spec) for name, spec in resolved(model, tiers, args).items()}
    shallow = min(left, key=left.__getitem__)
    depths = ["none", shallow] * (N_CLIENTS // 2) + [str(identify(model).n_layer - 2)]
    prompts = passages(args, len(depths), 64)
    size = ("-np", len(depths), "-c", 256 * len(depths), "-t", args.threads)
    with server(builds.ours(), model, *size, *tier_flags(tiers)) as running:
        until = time.perf_counter() + args.seconds
        with ThreadPoolExecutor(len(depths)) as pool:
            asked = [pool.submit(client, running, *job, until) for job in zip(prompts, depths, strict=True)]
            found = [job.result() for job in asked]
    n_tokens = [sum(len(times) - 1 for times in of_client) for of_client in found]
    full, fast = sum(n_tokens[0:N_CLIENTS:2]), sum(n_tokens[1:N_CLIENTS:2])
    waits = [[b - a for times in of for a, b in pairwise(times)] for of in found]
    others = statistics.median(wait for of_client in waits[:-1] for wait in of_client)
    longest = max(waits[-1]) * 1000
    share = min(full, fast) / (full + fast)
    return [
        row("fair", f"share of the tokens, {'full depth' if full < fast else shallow}", share, LEAST["fair"]),
        row("fair", "longest wait of a lone request for a token, ms", longest, None),
        row("fair", "median wait of the others for a token, ms", others * 1000, None),
    ]


def resolved(model: Path, tiers: dict[str, str], args: argparse.Namespace) -> dict[str, str]:
    """Return what each tier leaves out, as blocks and halves."""
    with server(builds.ours(), model, *tier_flags(tiers)) as running:
        found: dict[str, str] = running.ask("/props")["skip"]["tiers"]
    return found


def row(part: str, name: str, value: float, at_least: float | None) -> Row:
    return {
        "part": part,
        "name": name,
        "value": value,
        "at_least": at_least,
    }


def ratio(part: str, name: str, result: dict[str, Any]) -> Row:
    print(f"{name}: {result['ratio']:.3f}", file=sys.stderr)
    return row(part, name, result["ratio"], LEAST[part]) | {
        "quartiles": result["quartiles"],
        "n": result["n"],
    }


PARTS = {"switch": switch, "plain": plain, "fair": fair}


def missed(found: Row) -> bool:
    return found["at_least"] is not None and not found["value"] >= found["at_least"]


def table(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    lines = [["part", "what", "measured", "quartiles", "at least"]]
    for found in rows:
        value = f"{found['value']:.3f}{' (missed)' if missed(found) else ''}"
        quartiles = "-".join(f"{q:.3f}" for q in found.get("quartiles", ()))
        bound = "" if found["at_least"] is None else f"{found['at_least']:g}"
        lines.append([found["part"], found["name"], value, quartiles, bound])
    yield from markdown(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL")
    add("--skip-tier", action="extend", nargs="+", required=True, metavar="NAME=SPEC")
    add("-f", "--file", default=os.environ.get("LLAMA_SKIP_TEXT"), metavar="TEXT")
    add("--only", nargs="+", choices=[*PARTS, "load"], default=[*PARTS, "load"], metavar="PART")
    add("--png", type=Path, metavar="FILE", help="draw the latencies under load")
    add("--runs", type=int, default=15, metavar="N", help="pairs of each ratio (default: 15)")
    add("--seconds", type=float, default=30, metavar="S", help="of `fair` (default: 30)")
    add("--requests", type=int, default=120, metavar="N", help="under load (default: 120)")
    add("--overload", type=float, default=1.3, metavar="X", help="of what full depth serves (default: 1.3)")
    add("--skip-load", metavar="NAME:N,...", help="default: a tier more for each --parallel requests")
    add("-np", "--parallel", type=int, default=4, metavar="N", help="slots under load (default: 4)")
    add("-t", "--threads", type=int, default=n_processors(), metavar="N")
    add("--json", action="store_true")
    args = parser.parse_args(argv)
    tiers = probe.read_tiers(parser, args.skip_tier)
    if args.file is None:
        parser.error("name a text with -f, or in LLAMA_SKIP_TEXT")
    if args.png and "load" not in args.only:
        parser.error("--png: it draws what `load` measures")
    args.file = Path(args.file)
    rows = []
    for part, measure in PARTS.items():
        if part in args.only:
            rows += measure(args.model, tiers, args)
    under_load = load.load(args.model, tiers, tier_flags(tiers), args) if "load" in args.only else None
    rows += under_load["rows"] if under_load else []
    if args.png and under_load:
        with replacing(args.png) as file:
            file.write(load.picture(under_load))
    if args.json:
        print(
            json.dumps({"model": args.model.name, "tiers": tiers, "rows": rows, "load": under_load}, indent=1)
        )
    else:
        print("\n".join([*table(rows), *(["", *load.table(under_load)] if under_load else [])]))
    return int(any(map(missed, rows)))


if __name__ == "__main__":
    sys.exit(main())
