"""The picture of `llama-skip bench`, drawn with matplotlib."""

from __future__ import annotations

import statistics
from io import BytesIO
from typing import Any

from llama_skip.bench.file import Bench, BenchRow
from llama_skip.files.store import StrPath, replacing
from llama_skip.report.charts import COLOURS, drawing

HEIGHT = 0.36  # of a bar; a row has two of them
SPEEDS = ("path", "set", "file", "quiet")  # colours of the context lengths


def check_drawing() -> None:
    """Raise RuntimeError where matplotlib is not installed."""
    with drawing():
        pass


def write_png(path: StrPath, bench: Bench) -> None:
    """Draw memory and generation speed of each row.

    Raises:
        RuntimeError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    with replacing(path) as file:
        file.write(picture(bench))


def picture(bench: Bench) -> bytes:
    """Return the picture as PNG."""
    rows = [row for row in bench.rows if not row.failed]
    out = BytesIO()
    with drawing() as figure:
        sheet = figure(figsize=(15, 1.4 + 0.55 * len(rows)), layout="constrained", facecolor="white")
        places = [True, False] if any(row.standby and row.standby.device_mib for row in rows) else [False]
        *memories, speed = sheet.subplots(1, len(places) + 1, sharey=True)
        for axes, on_devices in zip(memories, places, strict=True):
            _memory(axes, rows, on_devices=on_devices)
        _speeds(speed, rows)
        speed.set_yticks(range(len(rows)), [row.name for row in rows])
        speed.set_ylim(len(rows) - 0.4, -0.6)
        title = f"{bench.model.name}, blocks {bench.settings['disk_layers']} on disk"
        sheet.suptitle(title, x=0.01, ha="left", weight="bold")
        sheet.savefig(out, format="png", dpi=130, metadata={"Software": None})
    return out.getvalue()


def _memory(axes: Any, rows: list[BenchRow], *, on_devices: bool) -> None:
    """Two bars a row, standby above generating; on the host the mapped part in front."""
    for i, row in enumerate(rows):
        for at, memory, colour in ((-0.5, row.standby, "bar"), (0.5, row.generating, "path")):
            assert memory is not None
            y = i + at * HEIGHT
            if on_devices:
                axes.barh(y, memory.devices, HEIGHT, color=COLOURS[colour])
                continue
            mapped, allocated = memory.host_mapped_rss_mib or 0.0, memory.host_allocated_mib or 0.0
            axes.barh(y, mapped, HEIGHT, color=COLOURS[colour], alpha=0.5)
            axes.barh(y, allocated, HEIGHT, left=mapped, color=COLOURS[colour])
    axes.grid(axis="x")
    axes.set_title("devices, MiB" if on_devices else "host, MiB")
    kinds = [("standby", "bar", 1.0), ("generating", "path", 1.0)]
    kinds += [] if on_devices else [("paler: mapped from the file", "path", 0.5)]
    for label, colour, alpha in kinds:
        axes.barh(0, 0, color=COLOURS[colour], alpha=alpha, label=label)
    _legend(axes)


def _speeds(axes: Any, rows: list[BenchRow]) -> None:
    """A bar for each row and context length; the differences are of several orders."""
    lengths = [speed.n_context_tokens for speed in rows[0].speeds]
    height = 2 * HEIGHT / len(lengths)
    for j, n in enumerate(lengths):
        values = [statistics.median(row.speeds[j].generation_tokens_per_s) for row in rows]
        places = [i + (j - (len(lengths) - 1) / 2) * height for i in range(len(rows))]
        axes.barh(places, values, height, color=COLOURS[SPEEDS[j % len(SPEEDS)]], label=f"after {n} tokens")
        for place, value in zip(places, values, strict=True):
            axes.annotate(
                f"{value:.3g}", (value, place), (3, 0), textcoords="offset points", va="center", fontsize=7
            )
    axes.set_xscale("log")
    axes.grid(axis="x")
    axes.set_title("generation, tokens/s")
    axes.margins(x=0.12)
    _legend(axes)


def _legend(axes: Any) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3)
