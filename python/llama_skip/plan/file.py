"""Plans: which blocks to leave out, with what in the gaps, and how that was found."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from llama_skip.bypass import bypass
from llama_skip.bypass import file as bypassfile
from llama_skip.bypass.bypass import Bypass
from llama_skip.files import identity
from llama_skip.files.identity import Identity
from llama_skip.files.store import StrPath, read_json, typed, write_json
from llama_skip.plan.found import Found
from llama_skip.progress import Log

FORMAT = bypassfile.FORMAT


@dataclass(frozen=True)
class Plan:
    """A plan file: JSON, or with a bypass a GGUF.

    Attributes:
        model: what it is for.
        skip_layers: the blocks, as for `--skip-layers`, "" for none.
        skip_scale: the factors of its gaps, as for `--skip-scale`, "" for none.
        disk_layers, disk_scale: the blocks that stay on disk, and factors of them, in the same form.
        bypass: what stands in gaps as tensors.
        found: how.
        runtime: for a plan for a given memory, the arguments it rests on beside the blocks.
        alternatives: what else was tried, each a dict with a "name".
    """

    model: Identity
    skip_layers: str
    skip_scale: str = ""
    disk_layers: str = ""
    disk_scale: str = ""
    bypass: list[Bypass] = field(default_factory=list)
    found: Found = field(default_factory=Found)
    runtime: dict[str, Any] | None = None
    alternatives: list[dict[str, Any]] = field(default_factory=list)


def write_plan(path: StrPath, plan: Plan) -> None:
    """Write a plan file, as GGUF where it has a bypass; what it held before stays where that fails.

    Raises:
        OSError: it cannot be written.
    """
    content = {f.name: getattr(plan, f.name) for f in fields(plan) if f.name != "bypass"}
    content["model"] = asdict(plan.model)
    content["found"] = plan.found.to_json()
    if not plan.bypass:
        write_json(path, FORMAT, content)
        return
    bypassfile.write_bypasses(path, content, plan.bypass)


def read_plan(path: StrPath) -> Plan:
    """Return the plan in a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a plan file, or of a newer version.
    """
    content, tensors = bypassfile.read_bypasses(path) if is_gguf(path) else (read_json(path, FORMAT), {})
    identity.check_known(content, path)
    plan = typed(content, Plan, path, "plan")
    if plan.bypass and not tensors:
        raise ValueError(f"{path}: has a bypass without its tensors, which a plan in JSON cannot hold")
    return replace(plan, bypass=bypass.with_tensors(plan.bypass, tensors))


def plan_argument(path: StrPath, model: Identity, log: Log) -> tuple[Plan, str]:
    """Return the plan in a file, and what `Llama(skip_layers=...)` takes to use all of it.

    Args:
        path: the file.
        model: what it is used for.
        log: called with a line where the plan is for another file of the same model.

    Raises:
        OSError, ValueError: as by read_plan(), or the plan is for another model.
    """
    plan = read_plan(path)
    if line := identity.check_same(plan.model, model, os.fspath(path)):
        log(line)
    return plan, f"@{Path(path).absolute()}"


def is_gguf(path: StrPath) -> bool:
    """Return whether a file is a GGUF.

    Raises:
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        return file.read(4) == b"GGUF"
