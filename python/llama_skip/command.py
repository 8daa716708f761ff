"""What the verbs of `llama-skip` share: how they refuse arguments and how they fail."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn


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
    except UsageError as err:
        return _fail(err, 2)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # so that nothing is written at exit
        return 1
    except Exception as err:
        return _fail(err, 1)


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table, its columns aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def message(err: Exception) -> str:
    """Return what a person is told of an error."""
    if isinstance(err, OSError) and err.filename is not None:
        return f"{err.filename}: {err.strerror}"
    return str(err) or type(err).__name__


def _fail(err: Exception, code: int) -> int:
    print(f"error: {message(err)}", file=sys.stderr)
    return code
