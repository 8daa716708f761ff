"""Threads, signals, forks and the order of clean-up around the class Llama."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PROMPT = "The capital of France is"
GREEDY = {"temperature": 0.0, "max_tokens": 8}
posix = pytest.mark.skipif(os.name == "nt", reason="signals and forks of POSIX")


def test_two_objects_run_at_the_same_time(make: Any, tiny: Path) -> None:
    """Each waits in its callback until the other one is in its own: one lock for both would hang."""
    models = [make(tiny, n_ctx=256) for _ in range(2)]
    meeting = threading.Barrier(2, timeout=60)

    def meet(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        meeting.wait()
        return scores

    def write(llm: Any) -> str:
        text: str = llm(PROMPT, **GREEDY, logits_processor=[meet], logit_bias={2: -100, 0: -100})["choices"][
            0
        ]["text"]
        return text

    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(write, models))
    assert texts[0] == texts[1]


def test_two_objects_load_at_the_same_time(make: Any, tiny: Path) -> None:
    meeting = threading.Barrier(2, timeout=60)
    threads: set[int] = set()

    def load(_: int) -> None:
        def progress(fraction: float) -> None:
            if threading.get_ident() not in threads:
                threads.add(threading.get_ident())
                meeting.wait()

        make(tiny, progress=progress)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(load, range(2)))
    assert len(threads) == 2


def test_python_runs_while_a_prompt_is_evaluated(make: Any, tokens: list[int]) -> None:
    llm = make()
    done = threading.Event()
    counted = 0

    def work() -> None:
        llm.logits(tokens[:48])
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.wait(0.001):
        counted += 1
    thread.join()
    assert counted > 2


def test_one_object_in_two_threads(make: Any) -> None:
    llm = make()
    prompts = [PROMPT, "Once upon a time"]
    expected = [llm(prompt, **GREEDY)["choices"][0]["text"] for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(llm, prompts[i % 2], **GREEDY) for i in range(8)]
        assert [c.result()["choices"][0]["text"] for c in calls] == expected * 4


def test_streams_of_one_object_in_two_threads_raise_or_are_right(make: Any) -> None:
    llm = make()
    prompts = [PROMPT, "Once upon a time"]
    expected = [llm(prompt, **GREEDY)["choices"][0]["text"] for prompt in prompts]

    def write(i: int) -> str | None:
        try:
            chunks = list(llm.create_completion(prompts[i % 2], **GREEDY, stream=True))
        except RuntimeError as err:
            assert "did something else in between" in str(err)
            return None
        return "".join(c["choices"][0]["text"] for c in chunks)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(write, range(6)))
    assert all(text is None or text == expected[i % 2] for i, text in enumerate(found))
    assert llm(PROMPT, **GREEDY)["choices"][0]["text"] == expected[0]


INTERRUPT = """
import os, signal, sys
from llama_skip import Llama
path, where = sys.argv[1:]
options = dict(n_threads=1, n_threads_batch=1, verbose=False)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)
if where == "load":
    try:
        Llama(path, **options, progress=interrupt)
        sys.exit("not interrupted")
    except KeyboardInterrupt:
        assert path not in open("/proc/self/maps").read()
llm = Llama(path, **options)
expected = llm("One two", temperature=0, max_tokens=4)["choices"]
tokens = llm.tokenize(b"one two three " * 150)[:400]
if where == "prompt":  # within one llama_decode
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    if where == "prompt":
        while True:
            llm.logits(tokens, first=len(tokens))
    elif where == "generation":
        for chunk in llm.create_completion("One two", max_tokens=400, stream=True):
            interrupt()
        sys.exit("not interrupted")
except KeyboardInterrupt:
    pass
assert llm.n_tokens in (0, len(llm.input_ids))
assert llm("One two", temperature=0, max_tokens=4)["choices"] == expected
print("usable")
"""


@posix
@pytest.mark.parametrize("where", ["load", "prompt", "generation"])
def test_an_interrupt_leaves_everything_usable(smollm2: Path, where: str) -> None:
    command = [sys.executable, "-c", INTERRUPT, str(smollm2), where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "usable\n"), done.stderr


@posix
def test_an_interrupt_from_outside(tiny: Path) -> None:
    code = (
        # a shell's background jobs ignore it, and their children too
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from llama_skip import Llama\n"
        f"llm = Llama({str(tiny)!r}, n_threads=1, n_threads_batch=1, verbose=False)\n"
        "try:\n    print('ready', flush=True)\n    while True: llm('One two', max_tokens=300)\n"
        "except KeyboardInterrupt:\n    print(llm('One', max_tokens=1)['object'])\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout and child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=60)[0] == "text_completion\n"
    assert child.returncode == 0


@posix
def test_a_forked_process_cannot_use_it(tiny: Path) -> None:
    code = (
        "import os, sys\nfrom llama_skip import Llama\n"
        f"options = dict(model_path={str(tiny)!r}, n_threads=1, n_threads_batch=1, verbose=False)\n"
        "llm = Llama(**options)\nstream = llm('x', stream=True)\nnext(stream)\nif os.fork() == 0:\n"
        "    calls = [lambda: llm('x'), lambda: llm.tokenize(b'x'), lambda: llm.memory()]\n"
        "    for call in [*calls, lambda: next(stream)]:\n"
        "        try:\n            call()\n            os._exit(1)\n"
        "        except RuntimeError as err:\n            assert 'process was forked' in str(err)\n"
        "    llm.close()\n    del llm\n"
        "    with Llama(**options) as own:\n        own('x', max_tokens=1)\n    sys.exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]), llm('x', max_tokens=1)['object'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "7 text_completion\n", done.stderr


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_loaded_object_is_not_pickled_or_copied(make: Any, tiny: Path, take: Any) -> None:
    with pytest.raises(TypeError, match=r"cannot be pickled or copied; save_state\(\)"):
        take(make(tiny))


def test_callbacks_in_another_thread(make: Any, tiny: Path) -> None:
    threads: set[int] = set()

    def note(*args: Any) -> Any:
        threads.add(threading.get_ident())
        return args[1] if len(args) == 2 and isinstance(args[1], np.ndarray) else None

    def work() -> int:
        llm = make(tiny, progress=note, log=note)
        llm(PROMPT, max_tokens=2, logits_processor=[note])
        llm.close()
        return threading.get_ident()

    with ThreadPoolExecutor(1) as pool:
        thread = pool.submit(work).result()
    assert threads == {thread}


def test_a_stream_keeps_what_it_needs(make: Any, tiny: Path) -> None:
    expected = make(tiny)(PROMPT, **GREEDY)["choices"][0]["text"]
    llm = make(tiny)
    stream = llm.create_completion(PROMPT, **GREEDY, stream=True)
    first = next(stream)["choices"][0]["text"]
    gone = weakref.ref(llm._held)
    llm.close()
    del llm
    gc.collect()
    assert first + "".join(c["choices"][0]["text"] for c in stream) == expected
    del stream
    gc.collect()
    assert gone() is None


def test_the_progress_callback_is_not_kept(tiny: Path) -> None:
    from llama_skip import Llama

    def progress(fraction: float) -> None:
        seen.append(fraction)

    seen: list[float] = []
    llm = Llama(tiny, n_threads=1, verbose=False, progress=progress)
    assert seen
    gone = weakref.ref(progress)
    del progress
    gc.collect()
    assert gone() is None
    llm.close()
