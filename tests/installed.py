"""Checks an installed package with nothing but its dependencies: python tests/installed.py [MODEL]

Without MODEL, a GGUF file of at least three blocks, the demo's model is fetched.
"""

import json
import os
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path
from socket import socket
from typing import Any

import numpy as np
from llama_skip import Llama, __version__
from llama_skip._tools import tool_path
from llama_skip.files.smollm2 import smollm2

SCRIPTS = Path(sysconfig.get_path("scripts"))
WORDS = "The old man went to the sea"


def run(tool: str, *args: str) -> str:
    done = subprocess.run(
        [SCRIPTS / tool, *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    assert done.returncode == 0, f"{tool}: {done.stderr}"
    print("ok:", tool, *args)
    return done.stdout


def check_back_ends() -> None:
    report = json.loads(run("llama-skip", "doctor", "--json"))
    assert "CPU" in report["backends"], report
    for library in report["backend_libraries"]:
        print("   ", Path(library["path"]).name, library["backend"] or library["reason"])
    assert __version__ in run("llama-skip", "--version")


def check_server(model: str) -> None:
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", model, "--skip-layers", "1", "-c", "256", "-t", "1", "--port", str(port)]
    program = tool_path("llama-server")  # on Windows the script that starts it would end without it
    assert program
    with subprocess.Popen([program, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"{url}/health")
                    break
                except (urllib.error.URLError, ConnectionError):
                    assert server.poll() is None, f"llama-server ended with {server.returncode}"
                    time.sleep(0.5)
            body = json.dumps({"prompt": WORDS, "n_predict": 4}).encode()
            request = urllib.request.Request(f"{url}/completion", body, {"Content-Type": "application/json"})
            answer: dict[str, Any] = json.load(urllib.request.urlopen(request))
            assert answer["content"], answer
            props = json.load(urllib.request.urlopen(f"{url}/props"))
            assert "1" in json.dumps(props["skip"]), props
        finally:
            server.terminate()
    print("ok: llama-server")


def check_class(model: str) -> None:
    with Llama(model, n_ctx=64, n_threads=1, n_threads_batch=1, verbose=False) as llm:
        tokens = llm.tokenize(WORDS.encode())
        full = llm.logits(tokens)
    with Llama(model, n_ctx=64, n_threads=1, n_threads_batch=1, verbose=False, skip_layers=[1]) as llm:
        left_out = llm.logits(tokens)
        text = llm(WORDS, max_tokens=4)["choices"][0]["text"]
    assert full.shape == left_out.shape and np.isfinite(full).all() and np.isfinite(left_out).all()
    assert text and not np.array_equal(full, left_out)
    print("ok: Llama")


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else os.fspath(smollm2())
    check_back_ends()
    run("llama-skip", "demo", "--model", model, "--ctx-size", "128", "--windows", "1", "-t", "1")
    words = ["-m", model, "-p", WORDS, "-n", "4", "-c", "256", "-t", "1", "--skip-layers", "1"]
    assert run("llama-cli", *words, "--single-turn")
    assert WORDS in run("llama-completion", *words, "-no-cnv")
    check_server(model)
    check_class(model)


if __name__ == "__main__":
    main()
