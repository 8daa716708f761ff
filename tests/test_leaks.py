"""Rounds of load, generate and close: memory stays flat, no descriptor is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# A process of its own, whose memory nothing else changes. glibc keeps freed memory for later use and hands
# some back only now and then, so the first rounds are left out and a megabyte in 200 rounds is allowed: an
# object that leaks its vocabulary, context or sampler leaks more than that in each round.
WARM_UP, BOUND = 100, 1024
ROUNDS = """
import gc, os, sys
from llama_skip import Llama
path, n, warm_up, n_tokens = sys.argv[1], *map(int, sys.argv[2:])
def resident():
    gc.collect()
    fields = dict(line.split(":") for line in open("/proc/self/status") if line.startswith("Rss"))
    return int(fields["RssAnon"].split()[0])
for i in range(n):
    if i == warm_up:
        before, open_before = resident(), len(os.listdir("/proc/self/fd"))
    with Llama(path, skip_layers=[1 + i % 2], n_ctx=256, n_threads=1, verbose=False) as llm:
        llm("One two", max_tokens=n_tokens, logprobs=1, grammar='root ::= [a-z ]+')
        list(llm.create_chat_completion([{"role": "user", "content": "x"}], max_tokens=2, stream=True))
        llm.load_state(llm.save_state())
        try:
            Llama(path, skip_layers="999", verbose=False)
        except ValueError:
            pass
print(resident() - before, len(os.listdir("/proc/self/fd")) - open_before)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def grown(path: Path, n: int, warm_up: int, n_tokens: int) -> tuple[int, int]:
    """KiB of anonymous memory and descriptors that `n` rounds added after the first ones."""
    command = [sys.executable, "-c", ROUNDS, str(path), *map(str, (n, warm_up, n_tokens))]
    env = {**os.environ, "MALLOC_ARENA_MAX": "1"}
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
