"""A verb in a process of its own: devices that other tests added to this one may be gone."""

from __future__ import annotations

import subprocess
import sys


def command(verb: str, *args: object, before: str = "pass") -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a verb; `before` is run first."""
    program = f"import sys\n{before}\nfrom llama_skip.cli import main\nsys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", program, verb, *map(str, args)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout, done.stderr
