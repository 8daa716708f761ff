"""Does what the last tokens of a prompt lose under a tier tell what will be lost on what comes after it?

    python benchmarks/probe.py MODEL... --skip-tier NAME=SPEC ... [-f PROSE] [--texts FOLDER] [--json]

40 texts of four kinds: passages of PROSE, sources of the standard library, licences, and the markup and data
that are installed; or those of FOLDER/KIND/*.txt. The prompt is decoded at full depth, and the tokens that
follow it in the text under each tier, as llama-server does: their mean KL divergence from the full model is
what a probe has to predict. A probe decodes the last N tokens of the prompt but one under the tier. Beside
it stands the entropy of the full model's predictions on these tokens, which costs nothing.

Spearman's rank correlation over the texts, for each N of --tokens; its bounds, at the N of the server
(--default): at least 0.6, and above that of the entropy. A budget is what a request may lose, in nats a
token: each text takes the shallowest tier whose probe is within it, and the mean of what is lost has to be
within it too. Cost is measured on llama-server: a prompt of --long tokens with the probe of two tiers, over
one without; at most 10 % more. The exit code is 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import speed
import texts
from llama_skip import Llama
from llama_skip.files.table import markdown
from llama_skip.measure.divergence import kl_divergence
from llama_skip.measure.perplexity import chunks
from llama_skip.model.processors import n_processors
from llama_skip.progress import progress

from comparison import builds
from comparison.server import server

LEAST, MOST_COST = 0.6, 0.1  # of the correlation, of the time of a long prompt
N_KINDS = 10  # texts of each kind
Tiers = dict[str, str]
Row = dict[str, Any]


def read_tiers(parser: argparse.ArgumentParser, words: list[str]) -> Tiers:
    """Return the values of --skip-tier by name, or end with what is wrong."""
    tiers = dict(word.split("=", 1) for word in words if "=" in word)
    if len(tiers) < len(words):
        parser.error("--skip-tier: expected NAME=SPEC, each name once")
    return tiers


def ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return the rank of each value, from 1; equal ones share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    found: npt.NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return found


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the rank correlation of two variables; NaN where one of them is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def entropy(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the entropy of what each row [n, n_vocab] predicts, in nats, [n]."""
    found = np.empty(len(logits))
    for rows in chunks(logits):
        x = (logits[rows] - logits[rows].max(axis=1, keepdims=True)).astype(np.float64)
        p = np.exp(x)
        total = p.sum(axis=1)
        found[rows] = np.log(total) - (p * x).sum(axis=1) / total
    return found


class Depths:
    """Logits of a text whose beginning was decoded at full depth.

    Args:
        llm: made with logits_all and room for the text.
    """

    def __init__(self, llm: Llama, tokens: list[int]) -> None:
        self.llm, self.tokens = llm, tokens
        llm.set_mask("none")
        llm.reset()
        llm.eval(tokens)
        self.full = llm.scores.copy()

    def kld(self, spec: str, first: int, last: int) -> float:
        """Return the mean KL divergence of tokens `first` to `last` - 1 under a mask, without one before."""
        llm = self.llm
        llm.set_mask("none")
        llm.truncate(first)
        if llm.n_tokens < first:
            llm.eval(self.tokens[llm.n_tokens : first])
        llm.set_mask(spec)
        llm.eval(self.tokens[first:last])
        masked = llm.scores[first:last].copy()
        llm.set_mask("none")
        llm.truncate(first)
        return float(kl_divergence(masked, self.full[first:last]).mean())


def opened(model: Path, n_ctx: int, n_threads: int) -> Llama:
    """Return the model as llama-server has it, with the logits of all tokens."""
    threads = {"n_threads": n_threads, "n_threads_batch": n_threads}
    return Llama(model, n_ctx=n_ctx, logits_all=True, flash_attn=True, verbose=False, **threads)


def depths(llm: Llama, tiers: Tiers) -> Tiers:
    """Return the tiers, the shallowest first, as the server sorts them."""
    n_blocks = {}
    for name, spec in tiers.items():
        llm.set_mask(spec)
        n_blocks[name] = sum(1 if isinstance(unit, int) else 0.5 for unit in llm.mask)
    llm.set_mask("none")
    return {name: tiers[name] for name in sorted(tiers, key=n_blocks.__getitem__, reverse=True)}


def measured(llm: Llama, tokens: list[int], tiers: Tiers, args: argparse.Namespace) -> Row:
    """Return what each tier loses on a text behind its prompt, and what probes see of it."""
    found = Depths(llm, tokens)
    n, last = args.prompt, args.prompt - 1
    return {
        "entropy": {k: float(entropy(found.full[last - k : last]).mean()) for k in args.tokens},
        "after": {name: found.kld(spec, n, len(tokens)) for name, spec in tiers.items()},
        "probe": {
            name: {k: found.kld(spec, last - k, last) for k in args.tokens} for name, spec in tiers.items()
        },
    }


def correlations(rows: list[Row], args: argparse.Namespace) -> list[Row]:
    """Return a row for each tier and length of the probe."""
    found = []
    for name in rows[0]["after"]:
        after = [row["after"][name] for row in rows]
        for k in args.tokens:
            by_probe = spearman([row["probe"][name][k] for row in rows], after)
            by_entropy = spearman([row["entropy"][k] for row in rows], after)
            missed = k == args.default and not (by_probe >= LEAST and by_probe > by_entropy)
            found.append(
                {"tier": name, "tokens": k, "probe": by_probe, "entropy": by_entropy, "missed": missed}
            )
    return found


def budgets(rows: list[Row], args: argparse.Namespace) -> list[Row]:
    """Return for each budget what is lost when each text takes the shallowest tier that a probe allows."""
    found = []
    for most in args.budgets:
        lost, taken = [], dict.fromkeys([*rows[0]["after"], "none"], 0)
        for row in rows:
            within = [name for name, probe in row["probe"].items() if probe[args.default] <= most]
            taken[within[0] if within else "none"] += 1
            lost.append(row["after"][within[0]] if within else 0.0)
        above = sum(x > 2 * most for x in lost) / len(lost)
        mean = sum(lost) / len(lost)
        found.append({"budget": most, "mean": mean, "above": above, "taken": taken, "missed": mean > most})
    return found


def cost(model: Path, tokens: list[int], tiers: Tiers, args: argparse.Namespace) -> Row:
    """Return how much longer a prompt takes to its first token where two tiers are probed, as a share."""
    some = list(tiers.items())[:2]
    flags = [word for name, spec in some for word in ("--skip-tier", f"{name}={spec}")]
    size = ("-c", len(tokens) + 256, "-t", args.threads)
    with server(builds.ours(), model, *size, *flags) as running:

        def seconds(**more: float) -> float:
            start = time.perf_counter()
            body = {"prompt": tokens, "n_predict": 1, "cache_prompt": False, "temperature": 0}
            answer = running.ask("/completion", body | more)
            assert ("skip_probe_ms" in answer["timings"]) == bool(more), answer
            return time.perf_counter() - start

        found = speed.paired(lambda: seconds(skip_max_kld=0), seconds, args.runs)
    share = found["ratio"] - 1
    return {"tokens": len(tokens), "tiers": len(some), "share": share, "missed": share > MOST_COST}


def of_model(model: Path, tiers: Tiers, args: argparse.Namespace) -> Row:
    """Return all that is measured on a model."""
    n_tokens = args.prompt + args.judged
    size = n_tokens * texts.BYTES_A_TOKEN
    with opened(model, n_tokens + 8, args.threads) as llm:
        tiers = depths(llm, tiers)
        n = None if args.texts else N_KINDS
        candidates = (
            texts.from_folder(args.texts) if args.texts else texts.installed(args.file, N_KINDS, size)
        )
        rows = []
        chosen = texts.take(candidates, llm.tokenize, n, n_tokens)
        with progress(len(chosen)) as bar:
            for kind, name, tokens in chosen:
                bar.say(f"{model.stem}: {name}")
                rows.append({"kind": kind, "name": name, **measured(llm, tokens, tiers, args)})
                bar.step()
    long = [token for _, _, tokens in chosen for token in tokens][: args.long]
    return {
        "tiers": tiers,
        "texts": rows,
        "correlations": correlations(rows, args),
        "budgets": budgets(rows, args),
        "cost": cost(model, long, tiers, args) if long else None,
    }


def table(found: dict[str, Row], args: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of three tables in Markdown: correlations, budgets, cost."""

    def cell(text: str, row: Row) -> str:
        return text + (" (missed)" if row["missed"] else "")

    kinds = {row["kind"] for of in found.values() for row in of["texts"]}
    n_texts = max(len(of["texts"]) for of in found.values())
    about = f"{n_texts} texts of {len(kinds)} kinds"
    yield f"Rank correlation with what is lost on the next {args.judged} tokens, {about}\n"
    lines = [["model", "tier", "left out", "lost", "probe, tokens", "of the probe", "of the entropy"]]
    for name, of in found.items():
        for row in of["correlations"]:
            lost = np.mean([text["after"][row["tier"]] for text in of["texts"]])
            cells = [name, row["tier"], of["tiers"][row["tier"]], f"{lost:.3f}", str(row["tokens"])]
            lines.append([*cells, cell(f"{row['probe']:.2f}", row), f"{row['entropy']:.2f}"])
    yield from markdown(lines)
    yield f"\nThe shallowest tier that a probe of {args.default} tokens finds within a budget, nats a token\n"
    lines = [["model", "budget", "lost, mean", "texts above twice the budget", "texts by tier"]]
    for name, of in found.items():
        for row in of["budgets"]:
            taken = ", ".join(f"{tier} {n}" for tier, n in row["taken"].items())
            mean = cell(f"{row['mean']:.3f}", row)
            lines.append([name, f"{row['budget']:g}", mean, f"{row['above']:.0%}", taken])
    yield from markdown(lines)
    costs = {name: of["cost"] for name, of in found.items() if of["cost"]}
    if costs:
        yield "\nTime to the first token that a probe adds\n"
        lines = [["model", "tokens of the prompt", "tiers", "added"]]
        for name, row in costs.items():
            lines.append([name, str(row["tokens"]), str(row["tiers"]), cell(f"{row['share']:.1%}", row)])
        yield from markdown(lines)


def missed(found: dict[str, Row]) -> bool:
    rows = [row for of in found.values() for row in [*of["correlations"], *of["budgets"], of["cost"]] if row]
    return any(row["missed"] for row in rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("models", nargs="+", type=Path, metavar="MODEL")
    add("--skip-tier", action="extend", nargs="+", required=True, metavar="NAME=SPEC")
    add("-f", "--file", default=os.environ.get("LLAMA_SKIP_TEXT"), metavar="PROSE")
    add("--texts", type=Path, metavar="FOLDER")
    add("--tokens", type=int, nargs="+", default=[8, 16, 32, 64], metavar="N")
    add("--default", type=int, default=64, metavar="N", help="of --tokens; llama-server's (default: 64)")
    add("--prompt", type=int, default=256, metavar="N", help="tokens (default: 256)")
    add("--judged", type=int, default=128, metavar="N", help="tokens after it (default: 128)")
    add("--budgets", type=float, nargs="+", default=[0.1, 0.2, 0.5, 1.0], metavar="X")
    add("--long", type=int, default=1000, metavar="N", help="tokens to measure the cost on; 0: do not")
    add("--runs", type=int, default=7, metavar="N", help="pairs for the cost (default: 7)")
    add("-t", "--threads", type=int, default=n_processors(), metavar="N")
    add("--json", action="store_true")
    args = parser.parse_args(argv)
    tiers = read_tiers(parser, args.skip_tier)
    if args.texts is None and args.file is None:
        parser.error("name prose with -f, or in LLAMA_SKIP_TEXT, or all texts with --texts")
    if args.default not in args.tokens or max(args.tokens) >= args.prompt:
        parser.error("--tokens: expected --default among them, and less than --prompt")
    args.file = args.file and Path(args.file)
    found = {model.name: of_model(model, tiers, args) for model in args.models}
    print(json.dumps(found, indent=1) if args.json else "\n".join(table(found, args)))
    return int(missed(found))


if __name__ == "__main__":
    sys.exit(main())
