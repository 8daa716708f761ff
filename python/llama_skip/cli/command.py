"""What the verbs of `llama-skip` share: how they refuse arguments and how they fail."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from llama_skip.errors import ArgumentError, message

FLAGS = {  # of arguments that are named otherwise in Python
    "mib": "--vram",
    "n_ctx": "--ctx-size",
    "n_parallel": "--parallel",
    "n_path": "--blocks",
    "n_rounds": "--rounds",
    "n_tokens": "--tokens",
    "n_windows": "--windows",
    "share": "--disk",
}


class UsageError(Exception):
    """Arguments that cannot be used together, or with this model."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors begin with `error: `."""

    def error(self, message: str) -> NoReturn:
        """Print usage and the error on stderr, and exit with 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"error: {message}\n")


def run(verb: Callable[[], int]) -> int:
    """Return the exit code of a verb: 2 after a usage error, 1 after any other, 130 after Ctrl-C."""
    try:
        code = verb()
        sys.stdout.flush()
        return code
    except ArgumentError as err:
        flag = FLAGS.get(err.name, "--" + err.name.replace("_", "-"))
        return _fail(f"{flag}: {err.text}", 2)
    except UsageError as err:
        return _fail(message(err), 2)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # so that nothing is written at exit
        return 1
    except Exception as err:
        return _fail(message(err), 1)


def _fail(text: str, code: int) -> int:
    print(f"error: {text}", file=sys.stderr)
    return code
