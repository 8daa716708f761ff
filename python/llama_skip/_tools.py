"""Console scripts that become the patched llama.cpp tools in llama_skip/bin."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import llama_skip


def tool_path(name: str) -> Path | None:
    """Return where a tool is, None where this installation was built without it."""
    file = name + ".exe" if os.name == "nt" else name
    return next((p for folder in llama_skip.__path__ if (p := Path(folder, "bin", file)).is_file()), None)


def run(name: str) -> int:
    """Replace this process by the tool `name`; return its exit code where a system cannot (Windows)."""
    tool = tool_path(name)
    if tool is None:
        print(f"error: this installation of llama-skip was built without {name}", file=sys.stderr)
        return 1
    command = [str(tool), *sys.argv[1:]]
    if os.name == "nt":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the tool's, which is of the same console
        return subprocess.call(command)
    os.execv(tool, command)


llama_cli = partial(run, "llama-cli")
llama_completion = partial(run, "llama-completion")
llama_server = partial(run, "llama-server")
llama_bench = partial(run, "llama-bench")
llama_perplexity = partial(run, "llama-perplexity")
llama_imatrix = partial(run, "llama-imatrix")
llama_fit_params = partial(run, "llama-fit-params")
llama_quantize = partial(run, "llama-quantize")
llama_tokenize = partial(run, "llama-tokenize")
llama_gguf_split = partial(run, "llama-gguf-split")
ggml_rpc_server = partial(run, "ggml-rpc-server")
