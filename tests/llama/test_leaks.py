"""Rounds of load, generate and close: memory stays flat, no descriptor is left."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

# A process of its own, whose memory nothing else changes. Counted is what is allocated, not what is resident:
# glibc keeps freed memory for later use and hands some back only now and then. The first rounds are left out,
# and a kilobyte a round is allowed: an object that leaks its vocabulary, context or sampler leaks far more.
WARM_UP, BOUND = 100, 200
ROUNDS = """
import ctypes, gc, os, sys
from llama_skip import Llama
path, n, warm_up, n_tokens = sys.argv[1], *map(int, sys.argv[2:])
class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Mallinfo2
def allocated():
    gc.collect()
    info = mallinfo2()
    return (info.uordblks + info.hblkhd) // 1024
for i in range(n):
    if i == warm_up:
        before, open_before = allocated(), len(os.listdir("/proc/self/fd"))
    with Llama(path, skip_layers=[1 + i % 2], n_ctx=256, n_threads=1, verbose=False) as llm:
        llm("One two", max_tokens=n_tokens, logprobs=1, grammar='root ::= [a-z ]+')
        list(llm.create_chat_completion([{"role": "user", "content": "x"}], max_tokens=2, stream=True))
        llm.load_state(llm.save_state())
        try:
            Llama(path, skip_layers="999", verbose=False)
        except ValueError:
            pass
print(allocated() - before, len(os.listdir("/proc/self/fd")) - open_before)
"""

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks glibc 2.33 or later what is allocated"
)


def grown(path: Path, n: int, warm_up: int, n_tokens: int) -> tuple[int, int]:
    """KiB of allocated memory and descriptors that `n` rounds added after the first ones."""
    command = [sys.executable, "-c", ROUNDS, str(path), *map(str, (n, warm_up, n_tokens))]
    env = {**os.environ, "MALLOC_ARENA_MAX": "1", "PYTHONMALLOC": "malloc"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=1800)
    assert done.returncode == 0, done.stderr
    memory, descriptors = map(int, done.stdout.split())
    return memory, descriptors


def test_two_hundred_rounds(tiny: Path) -> None:
    memory, descriptors = grown(tiny, WARM_UP + 200, WARM_UP, 2)
    assert memory < BOUND
    assert descriptors == 0


@pytest.mark.slow
def test_two_hundred_rounds_of_smollm2(smollm2: Path) -> None:
    memory, descriptors = grown(smollm2, 200, WARM_UP, 4)
    assert memory < BOUND
    assert descriptors == 0
