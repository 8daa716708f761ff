"""What `llama-skip bench` measures, its file and its table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llama_skip.files.identity import Identity, TextInfo
from llama_skip.files.store import Format, StrPath, write_json
from llama_skip.files.table import markdown

FORMAT = Format("llama-skip-bench", version=1)
NOT_COLD = 0.01  # of the bytes of disk blocks, in the page cache
FULL, UNREPACKED = "full model", "full model, not repacked"
WARM, COLD, STRICT = "on disk", "on disk, cold page cache", "on disk, strict"
NO_KV = "on disk, no KV cache"
LEFT_OUT, HEALED = "left out", "left out and healed"


@dataclass(frozen=True)
class Memory:
    """What a model takes at one moment, in MiB.

    Attributes:
        device_mib: by device, what llama.cpp allocated for weights, KV cache and compute buffers; devices
            that hold nothing are missing.
        host_mapped_rss_mib, host_mapped_pss_mib: of the model's files, what is mapped and in memory;
            page cache that no process maps is the system's, and not counted. None: not known.
        host_allocated_mib: what else the process took since before the model was loaded: repacked weights,
            KV cache, compute buffers, the vocabulary.
    """

    device_mib: dict[str, dict[str, float]]
    host_mapped_rss_mib: float | None
    host_mapped_pss_mib: float | None
    host_allocated_mib: float | None

    @property
    def devices(self) -> float:
        """All devices together."""
        return sum(sum(parts.values()) for parts in self.device_mib.values())


@dataclass(frozen=True)
class Speed:
    """Tokens per second with some tokens in front, one value a round.

    Attributes:
        n_context_tokens: length of the prompt, which the generated tokens follow.
        n_generated_tokens: how many were generated in each round.
        prompt_tokens_per_s, generation_tokens_per_s: [n_rounds].
    """

    n_context_tokens: int
    n_generated_tokens: int
    prompt_tokens_per_s: list[float]
    generation_tokens_per_s: list[float]


@dataclass(frozen=True)
class Reading:
    """How disk blocks come in when nothing of them is in memory, one value for each pass that was timed.

    Attributes:
        disk_mib: of the file, what disk blocks map.
        pass_mib_per_s: MiB that a token's pass brought in, by the time that this token took.
        sequential_mib_per_s: what read() makes of the same bytes just before, in order and in large pieces.
        still_cached_mib: what was left of them in the page cache before a pass, None: not known. Another
            process that maps the file keeps it there, and nothing is cold then.
    """

    disk_mib: float
    pass_mib_per_s: list[float]
    sequential_mib_per_s: list[float]
    still_cached_mib: float | None


@dataclass(frozen=True)
class BenchRow:
    """One way to run the model.

    Attributes:
        name: as the table shows it.
        skip_layers, disk_layers: what is left out, and what is on disk, as for the flags; "" for none. Of a
            plan: "@" and its path.
        failed: why it could not be loaded, "" where it could; nothing else is known of it then.
        perplexity, perplexity_error: of the text, and its standard error.
        standby: after `Llama.standby()`, and of a model without disk blocks when it waits.
        generating: the most of each kind while tokens are generated.
        speeds: one for each context length.
        reading: of the way with a cold page cache, where the system can drop it.
    """

    name: str
    skip_layers: str
    disk_layers: str
    failed: str = ""
    perplexity: float | None = None
    perplexity_error: float | None = None
    standby: Memory | None = None
    generating: Memory | None = None
    speeds: list[Speed] = field(default_factory=list)
    reading: Reading | None = None


@dataclass(frozen=True)
class Bench:
    """What a bench file holds.

    Attributes:
        model: which.
        text: what perplexity is measured on, and prompts are made of.
        settings: all that is needed to repeat it.
        rows: the full model first.
    """

    model: Identity
    text: TextInfo
    settings: dict[str, Any]
    rows: list[BenchRow]

    def row(self, name: str) -> BenchRow | None:
        """Return the way of this name, None where it is missing or could not be loaded."""
        return next((row for row in self.rows if row.name == name and not row.failed), None)


def speed_ratios(bench: Bench, name: str, base: str) -> dict[int, float]:
    """Return how many times as fast one way generates as another, by the context length.

    It is the median of the rounds, in each of which one was timed soon after the other. Empty where one of
    them is missing.
    """
    row, other = bench.row(name), bench.row(base)
    if row is None or other is None:
        return {}
    return {
        a.n_context_tokens: statistics.median(
            x / y for x, y in zip(a.generation_tokens_per_s, b.generation_tokens_per_s, strict=True)
        )
        for a, b in zip(row.speeds, other.speeds, strict=True)
    }


def read_ratio(reading: Reading) -> float:
    """Return at which share of the speed of a sequential read the disk blocks come in."""
    pairs = zip(reading.pass_mib_per_s, reading.sequential_mib_per_s, strict=True)
    return statistics.median(x / y for x, y in pairs)


def figures(bench: Bench) -> dict[str, Any]:
    """Return what follows from the rows: speeds of the disk blocks against those of the other ways."""
    cold = bench.row(COLD)
    return {
        "generation_over_full_not_repacked": speed_ratios(bench, WARM, UNREPACKED),
        "generation_over_full": speed_ratios(bench, WARM, FULL),
        "generation_over_no_kv_cache": speed_ratios(bench, WARM, NO_KV),
        "cold_read_over_sequential_read": None if not cold or not cold.reading else read_ratio(cold.reading),
    }


def write_bench(path: StrPath, bench: Bench) -> None:
    """Write a bench file; what it held before stays where that fails.

    Raises:
        OSError: it cannot be written.
    """
    write_json(path, FORMAT, {**asdict(bench), "figures": figures(bench)})


def table(bench: Bench) -> Iterator[str]:
    """Yield the lines of the table, in Markdown."""
    lengths = [speed.n_context_tokens for row in bench.rows for speed in row.speeds]
    lengths = list(dict.fromkeys(lengths))
    head = [""]
    for place in ("devices", "host mapped", "host allocated"):
        head += [f"{place}: standby MiB", f"{place}: generating MiB"]
    head += ["perplexity"]
    for n in lengths:
        head += [f"prompt of {n} t/s", f"generation after {n} t/s"]
    yield from markdown([head, *(_cells(row, lengths) for row in bench.rows)])


def _cells(row: BenchRow, lengths: Sequence[int]) -> list[str]:
    def mib(of: Callable[[Memory], float | None]) -> list[str]:
        return [_number(None if m is None else of(m), ".1f") for m in (row.standby, row.generating)]

    cells = [row.name, *mib(lambda m: m.devices)]
    cells += [*mib(lambda m: m.host_mapped_rss_mib), *mib(lambda m: m.host_allocated_mib)]
    cells.append(_number(row.perplexity, ".4f" if (row.perplexity or 0) < 1e4 else ".4e"))
    speeds = {speed.n_context_tokens: speed for speed in row.speeds}
    for n in lengths:
        for runs in (
            (speeds[n].prompt_tokens_per_s, speeds[n].generation_tokens_per_s) if n in speeds else ([],) * 2
        ):
            cells.append(_number(statistics.median(runs) if runs else None, ".3g"))
    return cells


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def notes(bench: Bench) -> Iterator[str]:
    """Yield the lines under the table."""
    for base in (UNREPACKED, FULL, NO_KV):
        ratios = speed_ratios(bench, WARM, base)
        if ratios:
            values = ", ".join(f"{value:.3g} after {n} tokens" for n, value in ratios.items())
            yield f"generation, {WARM} / {base}: {values}"
    cold = bench.row(COLD)
    if cold is not None and cold.reading is not None:
        reading = cold.reading
        yield (
            f"{COLD}: the blocks came in at {statistics.median(reading.pass_mib_per_s):.0f} MiB/s, "
            f"a sequential read of them at {statistics.median(reading.sequential_mib_per_s):.0f} MiB/s: "
            f"{read_ratio(reading):.3g}"
        )
        if reading.still_cached_mib is None:
            yield f"{COLD}: this system does not tell what the page cache holds"
        elif reading.still_cached_mib > NOT_COLD * reading.disk_mib:
            yield (
                f"{COLD}: it was not cold, {reading.still_cached_mib:.1f} of {reading.disk_mib:.1f} MiB "
                "stayed in the page cache: another process maps the file"
            )
    for row in bench.rows:
        if row.failed:
            yield f"{row.name}: {row.failed}"
    text, settings = bench.text, bench.settings
    yield (
        f"medians of {settings['n_rounds']} rounds; perplexity on {text.name}, {text.n_windows} windows of "
        f"{text.n_ctx} tokens; {settings['n_generated']} tokens generated, {settings['n_cold']} with a cold "
        f"page cache, {settings['n_no_kv']} without a KV cache"
    )
