"""One measurement of `llama-skip bench`, in a process of its own: JSON on stdin, lines of JSON on stdout."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from llama_skip.bench.file import Memory
from llama_skip.bench.hostmemory import HostMemory, block_ranges, cached, highest, host_memory, read_in_order
from llama_skip.errors import ModelLoadError, message
from llama_skip.files.gguf import read_gguf
from llama_skip.llama.llama import Llama
from llama_skip.measure import perplexity

N_GENERATED = 32  # tokens of a timing
N_COLD = 4  # of one in which each token finds nothing in memory
N_NO_KV = 2  # of one in which each token computes the sequence anew
N_WATCHED = 8  # while memory is looked at
N_PASSES = 3  # after a standby, each after a sequential read
WAKE = "Once upon a time,"


class Worker:
    """A loaded model and how it is run.

    Attributes:
        llm: the model.
        job: see main().
        files: the model's.
        base: memory of the process before the load.
    """

    def __init__(self, llm: Llama, job: dict[str, Any], base: HostMemory | None) -> None:
        self.llm = llm
        self.job = job
        self.base = base
        self.files = files_of(llm.model_path)
        self._tokens: list[int] = job["tokens"]

    def wake(self) -> None:
        """Run all blocks once, as a prompt and as a token, so that graphs and pages are there."""
        prompt = self.llm.tokenize(WAKE.encode())
        list(islice(self.llm.generate(prompt, temp=0.0), 2))
        self.llm.reset()

    def prompt(self, n_tokens: int) -> list[int]:
        """Return so many tokens of the text, which is repeated where it is shorter."""
        times = -(-n_tokens // len(self._tokens))
        return (self._tokens * times)[:n_tokens]

    def _before(self) -> None:
        if self.job["cold"]:
            self.llm.standby()

    def memory(self, host: HostMemory | None) -> Memory:
        """Return what the devices hold now, and `host` without what the process had before the load."""
        memory = self.llm.memory().items()
        devices = {name: used._asdict() for name, used in memory if name != "CPU" and sum(used) > 0}
        if host is None or self.base is None:
            return Memory(devices, None, None, None)
        return Memory(devices, host.mapped_rss, host.mapped_pss, host.allocated - self.base.allocated)

    def standby(self) -> Memory:
        """Return the memory when nothing is done."""
        self.llm.standby()
        return self.memory(host_memory(self.files))

    def perplexity(self, on_window: Callable[[], object]) -> tuple[float, float]:
        """Return the perplexity of the text, and its error."""

        def next_window() -> None:
            on_window()
            self._before()

        self._before()
        bos = self.llm.token_bos() if self.llm.adds_bos else None
        n_ctx = self.job["n_text_ctx"]
        found = perplexity.measure(self.llm, self._tokens, n_ctx=n_ctx, bos=bos, on_window=next_window)
        return found.value, found.error

    def speed(self, n_context: int) -> tuple[float, float]:
        """Return tokens per second of a prompt, and of the tokens that follow it."""
        self.llm.reset()
        self._before()
        prompt = self.prompt(n_context)
        stream = self.written(prompt)
        start = time.perf_counter()
        next(stream)
        prompt_speed = n_context / (time.perf_counter() - start)
        n_timed = self.job["n_timed"]
        if not self.job["cold"]:
            start = time.perf_counter()
            n_timed = sum(1 for _ in islice(stream, n_timed))
            return prompt_speed, n_timed / (time.perf_counter() - start)
        times = []
        for _ in range(n_timed):
            self.llm.standby()
            start = time.perf_counter()
            next(stream)
            times.append(time.perf_counter() - start)
        return prompt_speed, 1 / statistics.median(times)

    def written(self, prompt: Sequence[int]) -> Iterator[int]:
        """Yield the likeliest tokens after a prompt."""
        if self.job["kv_cache"]:
            yield from self.llm.generate(prompt, temp=0.0)
            return
        tokens = list(prompt)
        while True:
            self.llm.reset()
            tokens.append(int(self.llm.logits(tokens, first=len(tokens) - 1)[-1].argmax()))
            yield tokens[-1]

    def generating(self) -> Memory:
        """Return the most memory of each kind while tokens are written."""
        self.llm.reset()
        with highest(self.files) as found:
            stream = self.written(self.prompt(min(self.job["contexts"])))
            for _ in islice(stream, N_WATCHED if self.job["kv_cache"] else N_NO_KV):
                self._before()
        return self.memory(found[0] if found else None)

    def reading(self) -> dict[str, Any]:
        """Return what benchfile.Reading has, from sequential reads and passes in turn."""
        ranges = block_ranges(self.llm.model_path, self.llm.disk_layers)
        token = self.prompt(1)
        passes, sequential, left = [], [], []
        for _ in range(N_PASSES):
            self.llm.standby()
            left.append(_cached(ranges))
            sequential.append(read_in_order(ranges))
            self.llm.standby()
            left.append(_cached(ranges))
            start = time.perf_counter()
            self.llm.logits(token)
            elapsed = time.perf_counter() - start
            passes.append(self.llm.disk_memory().resident / elapsed)
        known = [value for value in left if value is not None]
        return {
            "disk_mib": self.llm.disk_memory().mapped,
            "pass_mib_per_s": passes,
            "sequential_mib_per_s": sequential,
            "still_cached_mib": max(known, default=None),
        }


def files_of(model: str) -> list[str]:
    """Return the files of a model."""
    return [str(path) for path in read_gguf(model).paths]


def _cached(ranges: Sequence[Any]) -> float | None:
    try:
        return cached(ranges)
    except (OSError, AttributeError):
        return None


def measure(job: dict[str, Any], on_step: Callable[[], object]) -> dict[str, Any]:
    """Return what main() writes."""
    base = host_memory([])
    try:
        llm = Llama(job["model"], **job["options"])
    except (ModelLoadError, RuntimeError) as err:
        return {"failed": message(err)}
    with llm:
        worker = Worker(llm, job, base)
        worker.wake()
        found: dict[str, Any] = {}
        if job["first"]:
            found["standby"] = vars(worker.standby())
            found["generating"] = vars(worker.generating())
            found["perplexity"], found["perplexity_error"] = worker.perplexity(on_step)
            worker.wake()
        found["speeds"] = []
        for n_context in job["contexts"]:
            found["speeds"].append(worker.speed(n_context))
            on_step()
        if job["cold"] and hasattr(os, "posix_fadvise"):
            found["reading"] = worker.reading()
    return found


def main() -> int:
    """Do one job.

    It has "model", a path; "options", arguments of `Llama`; "tokens" of the text and "n_text_ctx" of them in
    a window; "contexts", lengths of prompts, and "n_timed" tokens after each; whether "cold" and "kv_cache"
    are wanted; and "first": whether memory and perplexity are wanted beside speed. A line is
    {"step": true} for each window and each length, and at last {"result": ...} or {"error": text}.
    """
    job = json.load(sys.stdin)

    def write(**line: Any) -> None:
        print(json.dumps(line), flush=True)

    try:
        write(result=measure(job, lambda: write(step=True)))
    except Exception as err:
        write(error=message(err))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
