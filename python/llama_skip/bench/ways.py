"""The ways to run a model that `llama-skip bench` compares."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_skip import skipset
from llama_skip.bench import worker as benchworker
from llama_skip.bench.file import COLD, FULL, HEALED, LEFT_OUT, NO_KV, STRICT, UNREPACKED, WARM
from llama_skip.errors import ArgumentError
from llama_skip.files.identity import identify
from llama_skip.files.store import StrPath
from llama_skip.llama.llama import Llama
from llama_skip.plan.file import plan_argument
from llama_skip.progress import Log


@dataclass(frozen=True)
class Way:
    """A way to run the model.

    Attributes:
        name: as the table shows it.
        options: arguments of `Llama` that only this way has.
        cold: whether the disk blocks are handed back before each prompt and each token.
        kv_cache: whether a token uses what was computed of those before it. Where not, the cache is there
            all the same: it is what a batch is computed in.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    cold: bool = False
    kv_cache: bool = True

    @property
    def n_timed(self) -> int:
        """The tokens that are generated for a timing."""
        if not self.kv_cache:
            return benchworker.N_NO_KV
        return benchworker.N_COLD if self.cold else benchworker.N_GENERATED

    def job(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return what a worker has to know of it; `options` are those of all ways."""
        return {
            "options": {**options, **self.options},
            "cold": self.cold,
            "kv_cache": self.kv_cache,
            "n_timed": self.n_timed,
        }


def ways(
    model: StrPath,
    disk_layers: str,
    plan: StrPath | None,
    *,
    log: Log,
    **options: Any,
) -> list[Way]:
    """Return the ways, after dry runs of those that may be refused.

    Where the architecture does not allow that these blocks are left out, that way is missing, and `log` is
    called with the reason.

    Args:
        model: the GGUF file.
        disk_layers: the blocks on disk.
        plan: what is left out in the last way; None: there is none.
        log: called with lines that a user should see.
        options: arguments of `Llama` that all ways have.

    Raises:
        ValueError: a bad set, or none; the plan of another model.
        OSError: a file cannot be read.
    """
    blocks = check_disk(model, disk_layers, **options)
    disk = {"disk_layers": disk_layers}
    found = [
        Way(FULL),
        Way(UNREPACKED, {"repack": False}),
        Way(WARM, disk),
        Way(COLD, disk, cold=True),
        Way(STRICT, {**disk, "disk_strict": True}),
        Way(NO_KV, disk, kv_cache=False),
    ]
    left_out = {"skip_layers": disk_layers}
    try:
        _check(model, left_out, options)
        found.append(Way(LEFT_OUT, left_out))
    except ValueError as err:
        log(f"{LEFT_OUT}: not possible: {err}")
    if plan is not None:
        found.append(_of_plan(model, plan, blocks, log, options))
    return found


def check_disk(model: StrPath, disk_layers: str, **options: Any) -> str:
    """Return the blocks on disk by their numbers, after a dry run.

    Raises:
        ValueError: a bad set, or none.
    """
    try:
        with Llama(model, disk_layers=disk_layers, dry_run=True, **options) as llm:
            blocks = skipset.ranges_text(llm.disk_layers)
    except ValueError as err:
        raise ArgumentError("disk_layers", str(err).removeprefix("disk_layers: ")) from None
    if not blocks:
        raise ArgumentError("disk_layers", "no block is on disk, so there is nothing to compare")
    return blocks


def _of_plan(model: StrPath, path: StrPath, blocks: str, log: Log, options: dict[str, Any]) -> Way:
    plan, argument = plan_argument(path, identify(model), log)
    if plan.skip_layers != blocks:
        log(f"{path} leaves out {plan.skip_layers or 'nothing'}, on disk are {blocks}")
    way = Way(HEALED if plan.bypass else f"plan {Path(path).stem}", {"skip_layers": argument})
    _check(model, way.options, options)
    return way


def _check(model: StrPath, own: dict[str, Any], options: dict[str, Any]) -> None:
    with Llama(model, dry_run=True, **{**options, **own}):
        pass
