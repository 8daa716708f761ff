"""Plans: which blocks to leave out, with what in the gaps, and how that was found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from llama_skip import identity
from llama_skip.files import StrPath, read_json, write_json
from llama_skip.identity import Identity

FORMAT = "llama-skip-plan"


@dataclass(frozen=True)
class Plan:
    """A plan file.

    Attributes:
        model: what it is for.
        skip_layers: the blocks, as for `--skip-layers`, "" for none.
        skip_scale: the factors of its gaps, as for `--skip-scale`, "" for none.
        found: how: "method", and what that rests on.
        runtime: for a plan for a given memory, the arguments it rests on beside the blocks.
        alternatives: what else was tried, each a dict with a "name".
    """

    model: Identity
    skip_layers: str
    skip_scale: str = ""
    found: dict[str, Any] = field(default_factory=dict)
    runtime: dict[str, Any] | None = None
    alternatives: list[dict[str, Any]] = field(default_factory=list)


def write_plan(path: StrPath, plan: Plan) -> None:
    """Write a plan file; what it held before stays where that fails.

    Raises:
        OSError: it cannot be written.
    """
    write_json(path, FORMAT, asdict(plan))


def read_plan(path: StrPath) -> Plan:
    """Return the plan in a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a plan file, or of a newer version.
    """
    content = read_json(path, FORMAT)
    try:
        return Plan(
            model=identity.from_json(content, path),
            skip_layers=content["skip_layers"],
            skip_scale=content.get("skip_scale", ""),
            found=content.get("found", {}),
            runtime=content.get("runtime"),
            alternatives=content.get("alternatives", []),
        )
    except KeyError as err:
        raise ValueError(f"{path}: not a whole plan file: {err} is missing") from None
