"""Models from the Hugging Face Hub, with the extra `hub`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path


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
    """Download files of a repository, and return where the first one is; see `Llama.from_pretrained`."""
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError as err:
        raise ImportError('from_pretrained needs huggingface_hub: pip install "llama-skip[hub]"') from err
    files = HfApi().list_repo_files(repo_id)
    wanted = [matching(files, pattern, repo_id) for pattern in [filename, *(additional_files or [])]]
    local, cache = (None if folder is None else Path(folder) for folder in (local_dir, cache_dir))
    paths = [
        hf_hub_download(repo_id=repo_id, filename=file, local_dir=local, cache_dir=cache) for file in wanted
    ]
    return Path(paths[0])
