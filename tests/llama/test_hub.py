"""Llama.from_pretrained against a server on this machine that plays the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")
REPO, COMMIT = "someone/models", "0" * 40
RUN = """
import json, sys, time
time.sleep = lambda seconds: None  # between huggingface_hub's tries
from llama_skip import Llama
kwargs = json.loads(sys.argv[1])
try:
    with Llama.from_pretrained(**kwargs, n_ctx=256, n_threads=1, skip_layers="1", verbose=False) as llm:
        print(json.dumps([llm.model_path, list(llm.skip_layers)]))
except Exception as err:
    print(json.dumps([type(err).__name__, str(err)]))
"""


@pytest.fixture(scope="module")
def hub(tiny: Path) -> Iterator[str]:
    files = {
        "q4/model-Q4.gguf": tiny.read_bytes(),
        "model-Q8-a.gguf": b"a",
        "model-Q8-b.gguf": b"b",
        "README.md": b"# x",
    }

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            name = path.removeprefix(f"/{REPO}/resolve/main/")
            if path.startswith(f"/api/models/{REPO}/tree/"):
                tree = [{"type": "file", "path": f, "size": len(files[f]), "oid": COMMIT} for f in files]
                self.reply(json.dumps(tree).encode(), {})
            elif name in files:
                etag = hashlib.sha256(files[name]).hexdigest()
                self.reply(files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
            else:
                self.send_response(404)
                if path.startswith(f"/{REPO}/"):
                    self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        do_HEAD = do_GET

        def reply(self, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(200)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def load(hub: str, home: Path, *, is_offline: bool = False, **kwargs: object) -> list[object]:
    env = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_HUB_OFFLINE": "1"} if is_offline else {}
    arguments = json.dumps({"repo_id": REPO, **kwargs})
    command = [sys.executable, "-c", RUN, arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    found: list[object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", ["q4/model-Q4.gguf", "*Q4.gguf"])
def test_a_file_into_the_cache(hub: str, tiny: Path, tmp_path: Path, name: str) -> None:
    path, layers = load(hub, tmp_path, filename=name)
    assert layers == [1]
    assert str(path).startswith(str(tmp_path))
    assert Path(str(path)).name == "model-Q4.gguf"
    assert Path(str(path)).read_bytes() == tiny.read_bytes()


@pytest.mark.parametrize("name", ["q4/model-Q4.gguf", "*Q4.gguf"])
@pytest.mark.parametrize("folder", [None, "cache_dir", "local_dir"])
def test_a_file_of_the_cache_without_network(hub: str, tmp_path: Path, name: str, folder: str | None) -> None:
    where = {} if folder is None else {folder: str(tmp_path / "there")}
    path, _ = load(hub, tmp_path, filename="*Q4.gguf", **where)
    offline = partial(load, hub, tmp_path, is_offline=True, **where)
    assert offline(filename=name) == [path, [1]]
    kind, reason = offline(filename=name.replace("Q4", "Q5"))
    assert kind == ("ValueError" if "*" in name else "LocalEntryNotFoundError"), reason


def test_a_repository_that_is_not_there_is_no_reason_to_look_elsewhere(hub: str, tmp_path: Path) -> None:
    where = {"local_dir": str(tmp_path / "there")}
    load(hub, tmp_path, filename="*Q4.gguf", **where)
    kind, reason = load(hub, tmp_path, repo_id="someone/typo", filename="*Q4.gguf", **where)
    assert kind == "HfHubHTTPError", reason


def test_a_network_that_fails(hub: str, tmp_path: Path) -> None:
    path, _ = load(hub, tmp_path, filename="*Q4.gguf")
    for name in ("q4/model-Q4.gguf", "*Q4.gguf"):
        assert load("http://127.0.0.1:9", tmp_path, filename=name) == [path, [1]]
    kind, _ = load("http://127.0.0.1:9", tmp_path / "empty", filename="*Q4.gguf")
    assert "Connect" in str(kind)


def test_folders_and_further_files(hub: str, tmp_path: Path) -> None:
    local = tmp_path / "here"
    more = ["*-b.gguf", "README.md"]
    path, _ = load(hub, tmp_path / "home", filename="*Q4*", local_dir=str(local), additional_files=more)
    assert Path(str(path)) == local / "q4" / "model-Q4.gguf"
    assert (local / "model-Q8-b.gguf").read_bytes() == b"b"
    assert (local / "README.md").exists()
    assert not (local / "model-Q8-a.gguf").exists()
    path, _ = load(hub, tmp_path / "home", filename="*Q4*", cache_dir=str(tmp_path / "cache"))
    assert str(path).startswith(str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("kwargs", "error", "reason"),
    [
        (
            {"filename": "*Q8*"},
            "ValueError",
            f"several files of {REPO} match '*Q8*':\nmodel-Q8-a.gguf\nmodel-Q8-b",
        ),
        ({"filename": "x.gguf"}, "ValueError", f"no file of {REPO} match 'x.gguf':\n"),
        ({"filename": "*Q4*", "additional_files": ["y"]}, "ValueError", f"no file of {REPO} match 'y'"),
        ({"filename": "*-a.gguf"}, "ModelLoadError", "cannot load"),
        ({"filename": "*Q4*", "local_dir_use_symlinks": True}, "TypeError", "use instead: "),
        ({"filename": "*Q4*", "repo_id": "someone/else"}, "HfHubHTTPError", "404"),
    ],
    ids=str,
)
def test_errors(hub: str, tmp_path: Path, kwargs: dict[str, object], error: str, reason: str) -> None:
    kind, message = load(hub, tmp_path, **kwargs)
    assert reason in str(message)
    assert kind == error
