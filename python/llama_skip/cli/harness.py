"""`llama-skip harness`: lm-eval's tasks on a model with blocks left out; it needs the extra `lm-eval`.

The arguments are lm-eval's own, with `--model llama-skip`; in `--model_args`, whose items are separated by
commas, the items of a set are separated by semicolons:

    llama-skip harness run --model llama-skip --model_args "model=x.gguf,skip_layers=13-14;25" --tasks piqa
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from llama_skip.cli.command import run


def main(argv: Sequence[str] | None = None) -> int:
    """Run lm-eval's own command with the model `llama-skip` known to it."""
    return run(lambda: _harness(sys.argv[1:] if argv is None else argv))


def _harness(argv: Sequence[str]) -> int:
    if find_spec("lm_eval") is None and {"-h", "--help"} & {*argv}:
        print(f"usage: llama-skip harness ...\n\n{__doc__}")
        return 0
    import_module("llama_skip.eval.harness")
    command: Any = import_module("lm_eval.__main__")
    sys.argv = ["llama-skip harness", *argv]
    command.cli_evaluate()
    return 0
