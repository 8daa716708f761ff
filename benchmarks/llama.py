"""Speed of the class Llama, against llama-completion and llama-cpp-python: ratios of paired runs.

    python benchmarks/llama.py [--model FILE] [--tokens N] [--runs N] [--threads N]

The same prompt, greedily, on the CPU; runs alternate, a ratio is the median of the pairs' ratios.

    completion   tokens/s of llm(...) / what llama-completion prints for its generation     at least 0.95
    theirs       tokens/s of llm(...) / llama-cpp-python's, on the unpatched library        at least 1.05
    stream       tokens/s of llm(..., stream=True) / llm(...)                               at least 0.97
    import       seconds of `from llama_skip import Llama` in a new interpreter             at most 0.3

llm(...) is timed from the first token, with the prompt in the context, and includes sampling and text;
llama-completion counts the evaluation alone.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llama_skip.model.processors import n_processors
from speed import paired

from comparison import builds

PROMPT = "Once upon a time, in a land far away, there lived a"


def serve(pipe: Connection, package: str, lib: str, model: str, n_threads: int, n_tokens: int) -> None:
    """Answer "whole" and "stream" with tokens per second, until the pipe is closed."""
    if package == "llama_cpp":
        os.environ["LLAMA_CPP_LIB_PATH"] = lib
        sys.path.insert(0, str(builds.llama_cpp()))
    cls = __import__(package).Llama
    options = {"max_tokens": n_tokens, "temperature": 0.0}
    llm = cls(model, n_ctx=1024, n_threads=n_threads, n_threads_batch=n_threads, verbose=False)
    try:
        while True:
            stream = pipe.recv() == "stream"
            llm(PROMPT, **{**options, "max_tokens": 1})
            start = time.perf_counter()
            result = llm(PROMPT, stream=stream, **options)
            text = "".join(r["choices"][0]["text"] for r in (result if stream else [result]))
            seconds = time.perf_counter() - start
            assert stream or result["usage"]["completion_tokens"] == n_tokens, text
            pipe.send((n_tokens / seconds, text))
    except EOFError:
        llm.close()


@contextmanager
def server(
    package: str, lib: Path, model: Path, n_threads: int, n_tokens: int
) -> Iterator[Callable[[str], Any]]:
    """A process with a loaded model; calling it with "whole" or "stream" returns (tokens/s, text)."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(
        target=serve, args=(theirs, package, str(lib), str(model), n_threads, n_tokens), daemon=True
    )
    process.start()
    theirs.close()

    def call(kind: str) -> Any:
        ours.send(kind)
        return ours.recv()

    yield call
    ours.close()
    process.join()


def completion_speed(model: Path, n_threads: int, n_tokens: int) -> float:
    """Tokens per second that llama-completion prints."""
    done = builds.ours().run(
        *("llama-completion", "-m", model, "-p", PROMPT, "-n", n_tokens, "--temp", 0, "-c", 1024, "-no-cnv"),
        *("-t", n_threads, "-fa", "off", "--no-warmup", "--perf", "--ignore-eos"),
    )
    found = re.search(r":\s+eval time =.*?([0-9.]+) tokens per second", done.stderr)
    if not found:
        raise SystemExit(f"error: llama-completion printed no speed:\n{done.stderr[-2000:]}")
    return float(found[1])


def import_seconds(_: object = None) -> float:
    """Seconds of the import in a new interpreter, without the interpreter's own start."""
    code = "import time; t = time.time(); from llama_skip import Llama; print(time.time() - t)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="GGUF (default: SmolLM2-135M)")
    parser.add_argument("--runs", type=int, default=15, metavar="N", help="pairs of each (default: 15)")
    parser.add_argument("--tokens", type=int, default=128, metavar="N", help="to generate (default: 128)")
    parser.add_argument("--threads", type=int, default=n_processors(), metavar="N")
    args = parser.parse_args(argv)
    model = args.model or builds.smollm2()

    def show(name: str, bound: float, result: dict[str, Any]) -> None:
        low, high = result["quartiles"]
        numbers = f"{result['a']:8.2f} {result['b']:8.2f} {result['ratio']:7.3f} {low:9.3f}-{high:.3f}"
        print(f"{name:12} {numbers} {bound:9.2f}", flush=True)

    print(f"{'':12} {'a':>8} {'b':>8} {'ratio':>7} {'quartiles':>15} {'at least':>9}")
    with server("llama_skip", builds.ours().lib, model, args.threads, args.tokens) as ours:
        show(
            "completion",
            0.95,
            paired(
                lambda: ours("whole")[0],
                lambda: completion_speed(model, args.threads, args.tokens),
                args.runs,
            ),
        )
        show("stream", 0.97, paired(lambda: ours("stream")[0], lambda: ours("whole")[0], args.runs))
        with server("llama_cpp", builds.stock().lib, model, args.threads, args.tokens) as theirs:
            texts = {call("whole")[1] for call in (ours, theirs)}
            if len(texts) != 1:
                raise SystemExit(f"error: the texts differ: {texts}")
            show("theirs", 1.05, paired(lambda: ours("whole")[0], lambda: theirs("whole")[0], args.runs))
    print(f"import: {statistics.median(import_seconds(i) for i in range(5)):.3f} s, at most 0.3")
    return 0


if __name__ == "__main__":
    sys.exit(main())
