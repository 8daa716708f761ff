"""`llama-skip bench`: what blocks on disk cost and save, beside leaving them out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from subprocess import PIPE
from typing import Any

from llama_skip import skipset
from llama_skip.bench import worker as benchworker
from llama_skip.bench.file import Bench, BenchRow, Memory, Reading, Speed
from llama_skip.bench.ways import Way, ways
from llama_skip.errors import at_least
from llama_skip.eval.evaluate import LEAST_CTX, N_WINDOWS
from llama_skip.files.identity import identify
from llama_skip.files.store import StrPath
from llama_skip.llama.llama import Llama
from llama_skip.measure.text import read_text
from llama_skip.model.options import DEFAULTS
from llama_skip.progress import Log, Progress, progress

CONTEXTS = (100, 4000)
N_ROUNDS = 3
MARGIN = benchworker.N_GENERATED + benchworker.N_WATCHED  # tokens of context behind the longest prompt
COUNTS = {
    "n_generated": benchworker.N_GENERATED,
    "n_cold": benchworker.N_COLD,
    "n_no_kv": benchworker.N_NO_KV,
}


def bench_model(
    model_path: StrPath,
    disk_layers: skipset.Layers,
    *,
    plan: StrPath | None = None,
    contexts: Sequence[int] = CONTEXTS,
    text: StrPath | None = None,
    n_ctx: int = 512,
    n_windows: int = N_WINDOWS,
    n_rounds: int = N_ROUNDS,
    show_progress: bool = False,
    log: Log = lambda line: None,
    **options: Any,
) -> Bench:
    """Measure memory, perplexity and speed of a model in several ways: with blocks on disk and without.

    Each measurement runs in a process of its own, one at a time. The first round has memory and perplexity
    too; in each round all ways are timed one after another. Where a cold page cache is wanted,
    `Llama.standby()` drops it, which works as long as no other process maps the file: what stayed is
    measured, and told.

    Args:
        model_path: the GGUF file.
        disk_layers: the blocks, as for `Llama`.
        plan: a plan whose blocks are left out for the last row, healed or not.
        contexts: lengths of prompts, after which tokens are generated. Those that the model was not trained
            for are shortened.
        text: a text file for the perplexity and the prompts; None: text that the full model writes itself.
        n_ctx: tokens in a window of it.
        n_windows: windows at most, 0 for the whole text.
        n_rounds: how often each speed is measured.
        show_progress: show a bar on stderr.
        log: called with each line that a user should see.
        options: further arguments of `Llama`, such as n_gpu_layers or rpc_servers.

    Raises:
        ValueError: a bad set or length, the plan of another model, or a text that is too short.
        OSError: a file that cannot be read.
        RuntimeError: a measurement failed.
        llama_skip.ModelLoadError: the file cannot be loaded.
    """
    check_sizes(contexts, n_ctx, n_windows, n_rounds)
    disk_layers = skipset.layers_text(disk_layers, "disk_layers")
    model = identify(model_path)
    options = {**DEFAULTS, **options, "n_ctx": n_ctx}
    found = ways(model_path, disk_layers, plan, log=log, **options)
    # a file only has to be cut into tokens; what the model writes is written where the full one may not fit
    needs = {"disk_layers": disk_layers} if text is None else {"vocab_only": True}
    with Llama(model_path, **options, **needs) as llm:
        n_train = int(llm.metadata.get(f"{model.architecture}.context_length", 0))
        lengths = fitted(contexts, n_train, log)
        tokens, info = read_text(llm, text, n_ctx=n_ctx, n_windows=n_windows, show_progress=show_progress)
    options["n_ctx"] = max(n_ctx, max(lengths) + MARGIN)
    job = {"model": os.fspath(model_path), "tokens": tokens, "n_text_ctx": n_ctx, "contexts": lengths}
    runs: dict[str, list[dict[str, Any]]] = {way.name: [] for way in found}
    n_steps = len(found) * (info.n_windows + n_rounds * len(lengths))
    with progress(n_steps, shown=show_progress) as bar:
        for i, way in product(range(n_rounds), found):
            if not any("failed" in run for run in runs[way.name]):
                bar.say(f"{way.name}, round {i + 1} of {n_rounds}")
                runs[way.name].append(measured(way.name, {**job, **way.job(options), "first": i == 0}, bar))
    settings = {**options, "disk_layers": disk_layers, "contexts": lengths, "n_rounds": n_rounds, **COUNTS}
    rows = [row_of(way, runs[way.name], lengths) for way in found]
    if all(row.failed for row in rows):
        raise RuntimeError(rows[0].failed)
    return Bench(model, info, settings, rows)


def check_sizes(contexts: Sequence[int], n_ctx: int, n_windows: int, n_rounds: int) -> None:
    """Raise ArgumentError where a size is out of range."""
    at_least(1, contexts=min(contexts, default=0), n_rounds=n_rounds)
    at_least(LEAST_CTX, n_ctx=n_ctx)
    at_least(0, n_windows=n_windows)


def fitted(contexts: Sequence[int], n_train: int, log: Log) -> list[int]:
    """Return lengths of prompts that a model allows which was trained with n_train tokens (0: not known).

    Raises:
        ValueError: it allows none.
    """
    most = n_train - MARGIN
    if not n_train or max(contexts) <= most:
        return list(dict.fromkeys(contexts))
    if most < 1:
        raise ValueError(f"the model was trained with contexts of {n_train} tokens, {MARGIN + 1} are needed")
    log(f"the model was trained with contexts of {n_train} tokens: prompts have at most {most}")
    return list(dict.fromkeys(min(n, most) for n in contexts))


def measured(name: str, job: dict[str, Any], bar: Progress) -> dict[str, Any]:
    """Return what a worker finds, in a process of its own.

    Raises:
        RuntimeError: the measurement failed, or the process ended.
    """
    command = [sys.executable, "-m", "llama_skip.bench.worker"]
    with (
        tempfile.TemporaryFile("w+", errors="replace") as said,
        subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=said, text=True) as worker,
    ):
        assert worker.stdin and worker.stdout
        try:
            with suppress(BrokenPipeError), worker.stdin:
                json.dump(job, worker.stdin)
            for line in worker.stdout:
                content = json.loads(line)
                if "result" in content:
                    result: dict[str, Any] = content["result"]
                    return result
                if "error" in content:
                    raise RuntimeError(f"{name}: {content['error']}")
                bar.step()
        except BaseException:
            worker.kill()
            raise
        code = worker.wait()
        said.seek(0)
        last = said.read().strip().splitlines()[-1:]
    how = f"by signal {-code}" if code < 0 else f"with {code}"
    raise RuntimeError(f"{name}: the measuring process ended {how}{': ' if last else ''}{''.join(last)}")


def row_of(way: Way, runs: Sequence[dict[str, Any]], lengths: Sequence[int]) -> BenchRow:
    """Return a row from what the workers found in each round."""
    blocks = {key: way.options.get(key, "") for key in ("skip_layers", "disk_layers")}
    first = runs[0]
    if failed := next((run["failed"] for run in runs if "failed" in run), ""):
        return BenchRow(way.name, **blocks, failed=failed)
    speeds = []
    for i, n in enumerate(lengths):
        prompt, generation = zip(*(run["speeds"][i] for run in runs), strict=True)
        speeds.append(Speed(n, way.n_timed, list(prompt), list(generation)))
    return BenchRow(
        way.name,
        **blocks,
        perplexity=first["perplexity"],
        perplexity_error=first["perplexity_error"],
        standby=Memory(**first["standby"]),
        generating=Memory(**first["generating"]),
        speeds=speeds,
        reading=_reading([run["reading"] for run in runs]) if "reading" in first else None,
    )


def _reading(runs: Sequence[dict[str, Any]]) -> Reading:
    left = [run["still_cached_mib"] for run in runs]
    return Reading(
        disk_mib=runs[0]["disk_mib"],
        pass_mib_per_s=[value for run in runs for value in run["pass_mib_per_s"]],
        sequential_mib_per_s=[value for run in runs for value in run["sequential_mib_per_s"]],
        still_cached_mib=None if None in left else max(left),
    )
