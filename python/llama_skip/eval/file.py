"""What `llama-skip eval` measures, its file and its table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llama_skip.files import identity
from llama_skip.files.identity import Identity, TextInfo
from llama_skip.files.store import Format, StrPath, read_json, typed, write_json
from llama_skip.files.table import aligned
from llama_skip.measure.candidates import key_of
from llama_skip.model.loaded import DeviceMemory

FORMAT = Format("llama-skip-eval", version=1)


@dataclass(frozen=True)
class EvalRow:
    """One model: a file, with blocks left out or whole.

    Attributes:
        name: as the table shows it.
        file, file_id, file_type: which file.
        n_layer: blocks in it.
        skip_layers, skip_scale: what is left out, and the factors of the gaps, as for the flags; "" for none.
        bypass, plan_hash: what stands in the gaps as tensors, in words, and the hash of its plan file; ""
            for none.
        perplexity, perplexity_error: of the text, and its standard error.
        kld, kld_error, kld_median, kld_99: KL divergence from the full model in nats per token: mean, its
            standard error, and what half and 99 % of the tokens stay under.
        top1: the share of tokens with the full model's most probable token.
        n_scored: the tokens that these rest on.
        prompt_speed, generation_speed: tokens per second, None where they were not measured.
        memory: MiB by device.
    """

    name: str
    file: str
    file_id: str
    file_type: str
    n_layer: int
    skip_layers: str
    skip_scale: str
    perplexity: float
    perplexity_error: float
    kld: float
    kld_error: float
    kld_median: float
    kld_99: float
    top1: float
    n_scored: int
    prompt_speed: float | None = None
    generation_speed: float | None = None
    memory: dict[str, DeviceMemory] = field(default_factory=dict)
    bypass: str = ""
    plan_hash: str = ""

    @property
    def key(self) -> str:
        """That of the Candidate that it is about."""
        return key_of(self.file, self.file_id, self.skip_layers, self.skip_scale, self.plan_hash)

    def mib(self, device: str) -> float:
        """Return what is allocated on a device."""
        return sum(self.memory.get(device, (0.0,)))


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation file holds.

    Attributes:
        model: the full model, which the rows are compared with.
        text: on what.
        settings: all that is needed to repeat it.
        rows: the full model first.
        complete: whether no row is missing.
        pending: of rows that are not finished, by key: what was measured, window by window.
    """

    model: Identity
    text: TextInfo
    settings: dict[str, Any]
    rows: list[EvalRow] = field(default_factory=list)
    complete: bool = True
    pending: dict[str, Any] = field(default_factory=dict)


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of an evaluation file."""
    content = asdict(evaluation)
    for row, made in zip(content["rows"], evaluation.rows, strict=True):
        row["memory"] = {name: memory._asdict() for name, memory in made.memory.items()}
    if not evaluation.pending:
        del content["pending"]
    return content


def write_evaluation(path: StrPath, evaluation: Evaluation) -> None:
    """Write an evaluation file; what it held before stays where that fails.

    Raises:
        OSError: it cannot be written.
    """
    write_json(path, FORMAT, to_json(evaluation))


def read_evaluation(path: StrPath) -> Evaluation:
    """Return the evaluation in a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not an evaluation file, or of a newer version.
    """
    content = read_json(path, FORMAT)
    identity.check_known(content, path)
    rows = content.get("rows")
    content["rows"] = [_with_tuples(row) for row in rows] if isinstance(rows, list) else rows
    return typed(content, Evaluation, path, "evaluation")


def _with_tuples(row: Any) -> Any:
    """Return a row of a file with its memory as a DeviceMemory is built; what is malformed stays as it is."""
    memory = row.get("memory") if isinstance(row, dict) else None
    if not isinstance(memory, dict):
        return row
    names = DeviceMemory._fields
    tuples = {
        device: [sizes[name] for name in names] if isinstance(sizes, dict) and {*names} <= {*sizes} else sizes
        for device, sizes in memory.items()
    }
    return {**row, "memory": tuples}


def table(rows: Sequence[EvalRow]) -> Iterator[str]:
    """Yield the lines of the table; perplexity is compared with the first row's."""
    devices = list(dict.fromkeys(name for row in rows for name in row.memory))
    head = ["left out", "perplexity", "", "", "KL mean", "", "median", "99 %", "top-1"]
    head += ["prompt t/s", "generation t/s", *(f"{name} MiB" for name in devices)]
    cells = [
        [
            row.name,
            f"{row.perplexity:.4f}",
            f"+/- {row.perplexity_error:.5f}",
            f"{row.perplexity / rows[0].perplexity - 1:+.1%}" if row is not rows[0] else "",
            f"{row.kld:.5f}",
            f"+/- {row.kld_error:.5f}",
            f"{row.kld_median:.5f}",
            f"{row.kld_99:.3f}",
            f"{row.top1:.1%}",
            "-" if row.prompt_speed is None else f"{row.prompt_speed:.0f}",
            "-" if row.generation_speed is None else f"{row.generation_speed:.1f}",
            *(f"{row.mib(name):.1f}" for name in devices),
        ]
        for row in rows
    ]
    yield from aligned([head, *cells])
