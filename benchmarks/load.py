"""More requests than full depth can serve, on llama-server with and without --skip-load; a part of tiers.py.

An open loop: requests arrive at random at a fixed rate, whatever becomes of those before them, so that what a
server cannot serve waits.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import probe
import speed
import texts
from llama_skip.files.table import markdown
from llama_skip.report.charts import COLOURS, drawing

from comparison import builds
from comparison.server import Server, server

LEAST_GAIN = 0.8  # of what the bytes of the blocks promise
PROMPTS = (200, 400, 800)  # bytes
ANSWERS = (32, 64, 96)  # tokens
QUANTILES = (0.5, 0.9, 0.99)
WAYS = ("full depth", "with tiers")


class Request(NamedTuple):
    prompt: str
    n_predict: int


class Answer(NamedTuple):
    """When a request arrived, and its first and last token, in seconds; what it waited for a slot."""

    arrived: float
    first: float
    ended: float
    queued: float
    n_tokens: int
    tier: str
    content: str


def mixed(text: Path, n: int, seed: int = 0) -> list[Request]:
    """Return n requests of mixed lengths, their prompts from a text."""
    rng = np.random.default_rng(seed)
    found = []
    for _, passage in texts.passages(text, n, max(PROMPTS)):
        prompt = passage[: rng.choice(PROMPTS)].decode(errors="ignore")
        found.append(Request(prompt, int(rng.choice(ANSWERS))))
    return found


def ask(running: Server, request: Request, start: float, **more: Any) -> Answer:
    """Return the answer to a request, timed from `start` on.

    Raises:
        OSError: no answer, or a part of one.
    """
    body = {"prompt": request.prompt, "n_predict": request.n_predict, "temperature": 0, "cache_prompt": False}
    arrived = time.perf_counter() - start
    first, content = 0.0, ""
    for event in running.stream("/completion", {**body, "ignore_eos": True, **more}):
        now = time.perf_counter() - start
        first = first or now
        content += event["content"]
        if event["stop"]:
            timings = event["timings"]
            queued = max(0.0, first - arrived - timings["prompt_ms"] / 1000)
            tier = timings.get("skip") or "none"
            return Answer(arrived, first, now, queued, timings["predicted_n"], tier, content)
    raise OSError("the answer has no end")


def closed_loop(running: Server, requests: Sequence[Request], n_clients: int, **more: Any) -> float:
    """Return the requests a second that so many clients get answered, who ask one after the other."""
    start = time.perf_counter()
    with ThreadPoolExecutor(n_clients) as pool:
        n = len(list(pool.map(lambda request: ask(running, request, start, **more), requests)))
    return n / (time.perf_counter() - start)


def open_loop(running: Server, requests: Sequence[Request], rate: float, seed: int = 0) -> list[Answer]:
    """Return the answers to requests that arrive at so many a second; those that got none are left out."""
    times = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, len(requests)))
    start = time.perf_counter()

    def one(request: Request, at: float) -> Answer | None:
        time.sleep(max(0.0, start + at - time.perf_counter()))
        try:
            return ask(running, request, start)
        except (OSError, ValueError):
            return None

    with ThreadPoolExecutor(len(requests)) as pool:
        return [answer for answer in pool.map(one, requests, times) if answer is not None]


def busy(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of what spans cover together."""
    total, until = 0.0, float("-inf")
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, until))
        until = max(until, last)
    return total


def summary(answers: Sequence[Answer], n: int) -> dict[str, Any]:
    """Return latencies and throughput of the answers to n requests, and each tier's share of the tokens."""
    tokens: Counter[str] = Counter()
    for answer in answers:
        tokens[answer.tier] += answer.n_tokens
    seconds = busy((a.arrived, a.ended) for a in answers)
    return {
        "latency": np.quantile([a.ended - a.arrived for a in answers], QUANTILES).tolist(),
        "queued": np.quantile([a.queued for a in answers], QUANTILES).tolist(),
        "tokens_per_s": tokens.total() / seconds,
        "shares": {tier: count / tokens.total() for tier, count in tokens.items()},
        "lost": n - len(answers),
    }


def promised(shares: dict[str, float], bytes_of: dict[str, float], generating: float) -> float:
    """Return the speed-up if generation took time by the bytes that are read, and prompts took what they do.

    Args:
        shares: of the tokens, by tier.
        bytes_of: weights a token reads, by tier, over those of the full depth.
        generating: share of the time at full depth in which tokens are generated.
    """
    kept = sum(share * bytes_of[tier] for tier, share in shares.items())
    return 1 / (1 - generating + generating * kept)


def divergence(model: Path, tiers: dict[str, str], args: argparse.Namespace) -> dict[str, float]:
    """Return what each tier loses in what is generated behind a prompt at full depth, nats a token."""
    n_prompt, n_judged, n_texts = 96, 64, 8
    with probe.opened(model, 256, args.threads) as llm:
        passages = {"": texts.passages(args.file, n_texts, 4096)}
        chosen = texts.take(passages, llm.tokenize, n_texts, n_prompt + n_judged)
        by_text = []
        for _, _, tokens in chosen:
            found = probe.Depths(llm, tokens)
            by_text.append([found.kld(spec, n_prompt, n_prompt + n_judged) for spec in tiers.values()])
    return dict(zip(tiers, np.mean(by_text, axis=0).tolist(), strict=True))


def load(model: Path, tiers: dict[str, str], flags: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Return what open loops at full depth and with tiers show, and the bounds on them."""
    requests = mixed(args.file, args.requests)
    n = args.parallel
    size = ["-np", n, "-c", 1024 * n, "-t", args.threads, *flags]
    result: dict[str, Any] = {"answers": {}}
    with server(builds.ours(), model, *size) as running:
        left_out: dict[str, str] = running.ask("/props")["skip"]["tiers"]
        some = requests[: max(2 * n, len(requests) // 3)]
        ask(running, some[0], 0)  # the first one pays for the pages
        served = closed_loop(running, some, n)
        prompts = closed_loop(running, some, n, n_predict=1)
        rate = args.overload * served
        result["answers"][WAYS[0]] = open_loop(running, requests, rate)
    levels = args.skip_load or ",".join(f"{name}:{n * i}" for i, name in enumerate(tiers, 1))
    with server(builds.ours(), model, *size, "--skip-load", levels) as running:
        before = ask(running, some[0], 0)
        result["answers"][WAYS[1]] = open_loop(running, requests, rate)
        after = ask(running, some[0], 0)
    result |= {way: summary(answers, len(requests)) for way, answers in result["answers"].items()}
    shares = result[WAYS[1]]["shares"]
    full = speed.bytes_per_token(model)
    bytes_of = {name: speed.bytes_per_token(model, spec) / full for name, spec in left_out.items()}
    lost = divergence(model, tiers, args) | {"none": 0.0}
    gain = result[WAYS[1]]["tokens_per_s"] / result[WAYS[0]]["tokens_per_s"]
    promise = promised(shares, bytes_of | {"none": 1.0}, 1 - served / prompts)
    of_promise = (gain - 1) / (promise - 1) if promise > 1 else 0.0
    n_answered = sum(map(len, result["answers"].values())) / (2 * len(requests))
    again = float(after.tier == "none" and after.content == before.content)
    result |= {"rate": rate, "skip_load": levels, "gain": gain, "promised": promise}
    result["kld"] = sum(share * lost[tier] for tier, share in shares.items())
    result["rows"] = [
        {"part": "load", "name": "gain of what bytes promise", "value": of_promise, "at_least": LEAST_GAIN},
        {"part": "load", "name": "share of requests answered", "value": n_answered, "at_least": 1.0},
        {"part": "load", "name": "full depth again afterwards", "value": again, "at_least": 1.0},
    ]
    return result


def table(result: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    lines = [["", *WAYS]]
    for name, label in (("latency", "latency"), ("queued", "waiting for a slot")):
        for i, quantile in enumerate(QUANTILES):
            lines.append([f"{label}, {quantile:.0%}, s", *(f"{result[way][name][i]:.2f}" for way in WAYS)])
    lines.append(["tokens/s", *(f"{result[way]['tokens_per_s']:.1f}" for way in WAYS)])
    for tier in sorted(set(itertools.chain.from_iterable(result[way]["shares"] for way in WAYS))):
        shares = (result[way]["shares"].get(tier, 0) for way in WAYS)
        lines.append([f"tokens at {tier if tier != 'none' else 'full depth'}", *(f"{x:.0%}" for x in shares)])
    lines.append(["requests lost", *(str(result[way]["lost"]) for way in WAYS)])
    lines.append(["KL divergence, nats a token", "0", f"{result['kld']:.3f}"])
    lines.append(["tokens/s, of full depth", "1", f"{result['gain']:.2f} (bytes: {result['promised']:.2f})"])
    yield from markdown(lines)


def picture(result: dict[str, Any]) -> bytes:
    """Return a picture as PNG: latency by time of arrival and its distribution."""
    out = BytesIO()
    with drawing() as figure:
        sheet = figure(figsize=(11, 4), layout="constrained", facecolor="white")
        by_time, spread = sheet.subplots(1, 2)
        for way, colour in zip(WAYS, ("quiet", "path"), strict=True):
            answers = result["answers"][way]
            latency = [a.ended - a.arrived for a in answers]
            by_time.plot([a.arrived for a in answers], latency, ".", color=COLOURS[colour], label=way)
            shares = np.arange(1, len(latency) + 1) / len(latency)
            spread.step(sorted(latency), shares, where="post", color=COLOURS[colour], label=way)
        by_time.set(title="latency, s", xlabel="arrival, s", ylim=(0, None))
        spread.set(title="share of requests", xlabel="latency of at most, s", xlim=(0, None), ylim=(0, 1.02))
        for axes in (by_time, spread):
            axes.grid(axis="y")
            axes.legend()
        sheet.savefig(out, format="png", dpi=130, metadata={"Software": None})
    return out.getvalue()
