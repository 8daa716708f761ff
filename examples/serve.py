"""A server with blocks left out, and a question: python serve.py [model.gguf] [--skip-layers @plan.json]"""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from common import model_of, parser


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    """GET, or POST with a body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--port", metavar="N", type=int, default=8080)
    args = made.parse_args()
    beside_python = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [shutil.which("llama-server", path=beside_python) or "llama-server", "-m", model_of(args)]
    command += [*f"-c 2048 -np 1 --port {args.port} --skip-layers".split(), args.skip_layers or "none"]
    url = f"http://127.0.0.1:{args.port}"
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            if server.poll() is not None:
                raise SystemExit(f"the server ended: {' '.join(command)}")
            try:
                if ask(f"{url}/health")["status"] == "ok":
                    break
            except OSError:  # not yet
                time.sleep(0.2)
        print(f"left out: {ask(f'{url}/props')['skip']['layers'] or 'none'}")
        messages = [{"role": "user", "content": "Name a town by the sea."}]
        answer = ask(f"{url}/v1/chat/completions", {"messages": messages, "max_tokens": args.max_tokens})
        print(answer["choices"][0]["message"]["content"])
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
