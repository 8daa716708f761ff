"""A llama-server on loopback, and what the tests and benchmarks ask of one."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comparison.builds import Build


class Server:
    """A running server; `log` is what it wrote so far."""

    def __init__(self, port: int, log_file: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log_file = log_file

    @property
    def log(self) -> str:
        return self._log_file.read_text(errors="replace")

    def logs(self, text: str) -> bool:
        """Whether the log has `text`; a thread of the server's writes it, some time after the answer."""
        for _ in range(100):
            if text in self.log:
                return True
            time.sleep(0.1)
        return False

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """GET, or POST with a body; an HTTP error's answer is returned like any other."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def stream(self, path: str, body: dict[str, Any], timeout: float = 3600) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer; an HTTP error is raised, and who stops reading ends the request.

        Raises:
            OSError: no answer, or none within so many seconds.
        """
        data = json.dumps({**body, "stream": True}).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    yield json.loads(line[len(b"data: ") :])

    def text(self, path: str) -> str:
        """GET of what is no JSON."""
        with urllib.request.urlopen(self.url + path, timeout=120) as answer:
            text: str = answer.read().decode()
        return text

    def complete(self, prompt: str, n: int = 16) -> dict[str, Any]:
        """The answer to a greedy completion."""
        body = {"prompt": prompt, "n_predict": n, "temperature": 0, "ignore_eos": True, "return_tokens": True}
        answer: dict[str, Any] = self.ask("/completion", body)
        assert "content" in answer, answer
        return answer


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


@contextlib.contextmanager
def server(build: Build, model: Path | None, *args: object) -> Iterator[Server]:
    """A server of `model` with one slot unless args say otherwise, ready to be asked; without one, a router.

    With flash attention a token's logits do not depend on what it is decoded with, on the CPU.
    """
    port = free_port()
    defaults = f"--host 127.0.0.1 --port {port} -c 512 -np 1 -t 1 -fa on --no-warmup".split()
    models = [] if model is None else ["-m", str(model)]
    command = [str(build.tool("llama-server")), *models, *defaults, *map(str, args)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_ARG_")}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env
            )
        running = Server(port, log)
        try:
            for _ in range(6000):
                assert process.poll() is None, running.log[-3000:]
                with contextlib.suppress(OSError, ValueError):
                    if running.ask("/health").get("status") == "ok":
                        break
                time.sleep(0.1)
            yield running
        finally:
            process.terminate()
            try:  # upstream's handler takes a lock that the thread it interrupts may hold
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                warnings.warn("llama-server did not end on SIGTERM, and was killed", stacklevel=3)
