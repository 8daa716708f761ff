"""Let the stock llama-cpp-python package run on llama-skip's library.

>>> import llama_skip.compat  # before the first `import llama_cpp`
>>> import llama_cpp
>>> llm = llama_cpp.Llama("model.gguf", kv_overrides={"skip.layers": "10-20"})

So does all that is built on that package. Blocks are left out with `kv_overrides` alone: its class swallows
keywords that it does not know.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

IMPORTED = "llama_cpp is already imported: import llama_skip.compat before it"

try:
    from llama_skip import _core
except ImportError as err:  # the other library took the place of ours
    if "llama_cpp" in sys.modules:
        raise RuntimeError(IMPORTED) from err
    raise


def use() -> Path:
    """Make `import llama_cpp` load our library, and return the folder it is in.

    Importing this module calls it. LLAMA_CPP_LIB_PATH is set for this process and those it starts.

    Raises:
        RuntimeError: llama_cpp is already imported with another library.
        ImportError: the installed llama-cpp-python is of another release than the llama.cpp of this package.
    """
    folder = _core.library_path().resolve().parent
    if "llama_cpp" in sys.modules and os.environ.get("LLAMA_CPP_LIB_PATH") != str(folder):
        raise RuntimeError(IMPORTED)
    try:
        found = version("llama-cpp-python")
    except PackageNotFoundError:
        found = _core.source_version()  # importing it will say that it is missing
    if found != _core.source_version():
        wanted = _core.source_version()
        raise ImportError(f"llama-cpp-python {found} is installed, this library is that of {wanted}")
    os.environ["LLAMA_CPP_LIB_PATH"] = str(folder)
    return folder


use()
