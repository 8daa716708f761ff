"""Shared by tests of several folders."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support.shared.prose import PROSE

from comparison.builds import Build
from comparison.server import free_port


def saved_logits(build: Build, model: Path, text: Path, out: Path, *args: object, **kwargs: Any) -> bytes:
    done = build.run(
        "llama-perplexity",
        *("-m", model, "-f", text, "-c", 64, "-t", 1, "--chunks", 1, "--kl-divergence-base", out),
        *args,
        **kwargs,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out.read_bytes()


def complete(build: Build, model: Path, *args: object) -> subprocess.CompletedProcess[str]:
    flags = ["-no-cnv", "--no-warmup", "-n", "2", "--temp", "0", "-c", "128", "-t", "1", "-p", "Once"]
    return build.run("llama-completion", "-m", model, *flags, *args)


def server_facts(build: Build, model: Path, *args: str) -> tuple[dict[str, Any], str]:
    """/props of a server, and its log."""
    port = free_port()
    command = [
        str(build.tool("llama-server")),
        "-m",
        str(model),
        "--port",
        str(port),
        "-c",
        "256",
        "-t",
        "1",
        *args,
    ]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    try:
        for _ in range(600):
            assert server.poll() is None, server.communicate()[0][-3000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/props", timeout=5) as answer:
                    props = json.load(answer)
                break
            except OSError:
                time.sleep(0.1)
    finally:
        server.send_signal(signal.SIGTERM)
        log = server.communicate(timeout=60)[0]
    return props, log


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(PROSE)
    return path


def tool_perplexity(ours: Build, model: Path, text: Path, *args: object) -> tuple[str, str]:
    """What llama-perplexity prints at the end: perplexity and its error."""
    done = ours.run("llama-perplexity", "-m", model, "-f", text, "-t", 1, *args)
    found = re.search(r"Final estimate: PPL = (\S+) \+/- (\S+)", done.stdout + done.stderr)
    assert found, done.stderr[-2000:]
    return found[1], found[2]
