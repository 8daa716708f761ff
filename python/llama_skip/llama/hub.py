"""Models from the Hugging Face Hub, with the extra `hub`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from glob import has_magic
from pathlib import Path
from typing import Any


def matching(files: Iterable[str], pattern: str, repo_id: str) -> str:
    """Return the one file that a name or glob pattern means.

    Raises:
        ValueError: none, or several.
    """
    known = list(files)
    found = [file for file in known if fnmatch(file, pattern)]
    if len(found) == 1:
        return found[0]
    listed = "\n".join(found or known)
    raise ValueError(f"{'several files' if found else 'no file'} of {repo_id} match {pattern!r}:\n{listed}")


def download(
    repo_id: str,
    filename: str,
    additional_files: Sequence[str] | None,
    local_dir: str | os.PathLike[str] | None,
    cache_dir: str | os.PathLike[str] | None,
) -> Path:
    """Return where the first file is, with all of them in the cache; see `Llama.from_pretrained`."""
    try:
        from huggingface_hub import HfApi, hf_hub_download, snapshot_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError as err:
        raise ImportError('from_pretrained needs huggingface_hub: pip install "llama-skip[hub]"') from err
    folders: Any = {"local_dir": local_dir, "cache_dir": cache_dir}

    patterns = [filename, *(additional_files or [])]
    is_local = False

    def cached() -> list[str]:
        held = Path(snapshot_download(repo_id, local_files_only=True, **folders))
        known = held if local_dir is None else held / ".cache" / "huggingface" / "download"
        end = "" if local_dir is None else ".metadata"  # of each file that was downloaded into the folder
        names = [path.relative_to(known).as_posix() for path in known.rglob(f"*{end}") if path.is_file()]
        return [name.removesuffix(end) for name in names if (held / name.removesuffix(end)).exists()]

    def listed() -> list[str]:
        nonlocal is_local
        try:
            return list(HfApi().list_repo_files(repo_id))
        except (HfHubHTTPError, HFValidationError):
            raise  # an answer, or no question
        except Exception:  # what says that there is no network depends on huggingface_hub's version
            with suppress(Exception):
                found = cached()
                is_local = True
                return found
            raise

    names = patterns
    if any(map(has_magic, patterns)):
        files = listed()
        names = [matching(files, pattern, repo_id) for pattern in patterns]
    try:
        paths = [hf_hub_download(repo_id, name, local_files_only=is_local, **folders) for name in names]
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        files = listed()
        for pattern in patterns:
            matching(files, pattern, repo_id)  # says what there is
        raise
    return Path(paths[0])
