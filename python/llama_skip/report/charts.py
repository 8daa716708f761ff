"""The report's charts, drawn with matplotlib, and as SVG that takes its colours from a page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from typing import Any

from llama_skip.errors import MIB
from llama_skip.score.file import Score

# on paper; in SVG each becomes the CSS variable of its name, so that a page can be dark
COLOURS = {
    "ink": "#1d232b",
    "quiet": "#67717d",
    "line": "#d9dfe6",
    "paper": "#fefefe",
    "bar": "#b3bdc9",
    "path": "#1f5fbf",
    "set": "#b8520a",
    "file": "#117a58",
}
MARKERS = {
    "plan": {"marker": "o", "markersize": 10, "markerfacecolor": "none", "color": COLOURS["path"]},
    "set": {"marker": "D", "markersize": 6, "color": COLOURS["set"]},
    "file": {"marker": "s", "markersize": 6.5, "color": COLOURS["file"]},
}
LABELS = {"plan": "plan", "set": "blocks left out, evaluated", "file": "another file, evaluated"}
HALF_MARKERS = {"attn": "^", "ffn": "v"}
FEW = 40  # blocks, up to which each is labelled


@dataclass(frozen=True)
class Point:
    """A plan or a row of an evaluation, beside the path; None is not known.

    Attributes:
        name: as shown.
        kind: "plan", "set" for blocks left out of the scored file, or "file" for another file.
        weights: MiB of weights that are left.
        kld, kld_error: KL divergence from the full model, nats per token.
        perplexity, perplexity_full: with what is left out, and of the full model on the same text.
        top1: the share of tokens with the full model's most probable token.
        text: what it was measured on.
    """

    name: str
    kind: str
    weights: float | None = None
    kld: float | None = None
    kld_error: float | None = None
    perplexity: float | None = None
    perplexity_full: float | None = None
    top1: float | None = None
    text: str = ""


@contextmanager
def drawing() -> Iterator[Any]:
    """Yield matplotlib's class Figure, with the settings that all charts share.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    try:
        matplotlib: Any = import_module("matplotlib")
        figure: Any = import_module("matplotlib.figure").Figure
    except ImportError:
        raise RuntimeError("charts need matplotlib: pip install 'llama-skip[report]'") from None
    ink, quiet, line = COLOURS["ink"], COLOURS["quiet"], COLOURS["line"]
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "llama-skip",
        "font.size": 9,
        "text.color": ink,
        "axes.edgecolor": line,
        "axes.labelcolor": quiet,
        "axes.titlecolor": ink,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.titlesize": 11,
        "axes.titlepad": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "xtick.color": line,
        "ytick.color": line,
        "xtick.labelcolor": quiet,
        "ytick.labelcolor": quiet,
        "grid.color": line,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 8,
    }
    with matplotlib.rc_context(settings):
        yield figure


def draw_costs(axes: Any, score: Score) -> None:
    """Bars of the divergence without each block, marks of that without halves; their place on the path."""
    known = [(b.block, b.kld, b.kld_error or 0.0) for b in score.blocks if b.kld is not None and b.kld > 0]
    halves = [(half, half.kld) for half in score.halves if half.kld is not None and half.kld > 0]
    place = {step.unit: i for i, step in enumerate(score.path, 1)}
    _log_scale(axes)
    axes.grid(axis="y")
    for block, kld, error in known:
        axes.bar(block, kld, width=0.74, color=COLOURS["path" if block in place else "bar"])
        if block in place and score.model.n_layer <= FEW:
            _note(axes, str(place[block]), (block, kld + error), (0, 2), "path", ha="center", weight="bold")
    for half, kld in halves:
        colour, marker = COLOURS["path" if half.unit in place else "quiet"], HALF_MARKERS[half.half]
        axes.plot(half.block, kld, marker=marker, markersize=4.5, color=colour, zorder=3)
        if half.unit in place and score.model.n_layer <= FEW:
            _note(axes, str(place[half.unit]), (half.block, kld), (4, -3), "path", weight="bold", fontsize=7)
    if known:
        axes.errorbar(*zip(*known, strict=True), fmt="none", ecolor=COLOURS["ink"], elinewidth=0.8)
        klds = [*(kld for _, kld, _ in known), *(kld for _, kld in halves)]
        low, high = min(klds), max(klds)
        axes.set_ylim(low / 2, high * 2)
    for b in score.blocks:
        if b.refused and known:
            _note(axes, "x", (b.block, low / 2), (0, 2), "quiet", ha="center")
    axes.set_ylabel("KL divergence, nats per token")
    _blocks_axis(axes, score.model.n_layer)


def draw_influence(axes: Any, score: Score) -> None:
    """Bars of block influence."""
    known = [(b.block, b.influence) for b in score.blocks if b.influence is not None]
    places = {step.unit for step in score.path}
    for block, influence in known:
        axes.bar(block, influence, width=0.74, color=COLOURS["path" if block in places else "bar"])
    if any(influence > 0 for _, influence in known):
        _log_scale(axes)
        axes.set_ylim(min(influence for _, influence in known if influence > 0) / 2)
    axes.grid(axis="y")
    axes.set_ylabel("block influence")
    axes.set_xlabel("block")
    _blocks_axis(axes, score.model.n_layer)


def draw_angular(axes: Any, score: Score) -> Any:
    """The angular distance over n blocks from block l on, and where it is smallest for each n.

    Returns:
        What a colour bar is made of.
    """
    n_layer = len(score.angular)
    rows = [
        [row[n] if n < len(row) and row[n] is not None else math.nan for row in score.angular]
        for n in range(n_layer)
    ]
    edges = [i - 0.5 for i in range(n_layer + 1)]
    mesh = axes.pcolormesh(edges, [i + 1 for i in edges], rows, cmap="viridis_r", rasterized=True)
    for n, row in enumerate(rows, 1):
        known = [(value, first) for first, value in enumerate(row) if value is not None and value == value]
        if known:
            axes.plot(
                min(known)[1],
                n,
                marker="o",
                markersize=max(1.5, min(4, 100 / n_layer)),
                color=COLOURS["paper"],
                markeredgecolor="black",
                markeredgewidth=0.6,
            )
    axes.set_xlabel("first block, l")
    axes.set_ylabel("number of blocks, n")
    return mesh


def draw_path(axes: Any, score: Score, points: Sequence[Point]) -> None:
    """Divergence against the weights that are left: the path with the number of blocks out, and `points`."""
    whole = score.model.weights_bytes / MIB
    _log_scale(axes)
    axes.grid()
    x = [whole - step.bytes / MIB for step in score.path]
    y = [step.kld for step in score.path]
    axes.errorbar(
        x,
        y,
        [step.kld_error for step in score.path],
        color=COLOURS["path"],
        marker="o",
        markersize=4.5,
        linewidth=1.6,
        elinewidth=0.8,
        label=f"greedy path, with the number of {'its step' if score.halves else 'blocks left out'}",
        zorder=3,
    )
    for i, place in enumerate(zip(x, y, strict=True), 1):
        if len(x) <= 12 or i % 5 == 0 or i in (1, len(x)):
            _note(axes, str(i), place, (-4, -4), "path", ha="right", va="top", weight="bold")
    for point in points:
        if point.weights is not None and point.kld:
            place = point.weights, point.kld
            error = point.kld_error or 0.0
            marker: dict[str, Any] = MARKERS[point.kind]
            axes.errorbar(
                *place,
                error,
                **marker,
                label=LABELS[point.kind],
                elinewidth=0.8,
                linestyle="none",
                zorder=4,
            )
            colour = "path" if point.kind == "plan" else point.kind
            _note(axes, point.name, place, (8, 4), colour, fontsize=8)
    axes.axvline(whole, color=COLOURS["quiet"], linewidth=0.9, linestyle=(0, (4, 3)))
    axes.margins(x=0.1, y=0.14)
    low = axes.get_ylim()[0]
    text = f"full model, {whole:,.1f} MiB"
    _note(axes, text, (whole, low), (3, 4), "quiet", rotation=90, ha="left", va="bottom", fontsize=8)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_xlabel("MiB of weights left")
    axes.set_ylabel("KL divergence, nats per token")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(list(unique.values()), list(unique), loc="best")


def to_svg(figure: Any, name: str, label: str) -> str:
    """Return a figure as an SVG element for an HTML page that has a CSS variable for each of COLOURS.

    Args:
        figure: matplotlib's.
        name: put before its ids, as other figures on the page have the same.
        label: what it shows, for those who cannot see it.
    """
    out = StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(out, format="svg", dpi=200, transparent=True, metadata=nothing)
    svg = out.getvalue()
    box = re.search(r'viewBox="[^"]+"', svg)
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    assert box
    body = re.sub(r"<defs>\s*<style.*?</defs>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r" font-family: [^;\"]*;", "", body).replace("xlink:href", "href")
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    for variable, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{variable})")
    return f'<svg {box[0]} role="img" aria-label="{label}">{body}'


def _note(
    axes: Any, text: str, place: tuple[float, float], away: tuple[int, int], colour: str, **how: Any
) -> None:
    axes.annotate(text, place, away, textcoords="offset points", color=COLOURS[colour], **how)


def _blocks_axis(axes: Any, n_layer: int) -> None:
    axes.set_xlim(-0.8, n_layer - 0.2)
    axes.set_xticks(range(0, n_layer, 1 if n_layer <= FEW else 5))
    axes.tick_params(axis="x", length=0)


def _log_scale(axes: Any) -> None:
    """Make y logarithmic, with labels 0.01, 0.02, 0.05, 0.1, ... instead of powers of ten."""
    ticker: Any = import_module("matplotlib.ticker")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
