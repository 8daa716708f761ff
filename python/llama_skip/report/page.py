"""The report's page: one HTML file with its charts, tables and style inside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from html import escape
from importlib import resources

from llama_skip.errors import MIB
from llama_skip.plan.choose import n_steps
from llama_skip.report.charts import COLOURS, Point
from llama_skip.score.file import Score
from llama_skip.score.sizes import shares
from llama_skip.skipset import ranges_text, unit_text

DARK = {
    "ink": "#e6eaef",
    "quiet": "#98a3b0",
    "line": "#333c47",
    "paper": "#14181d",
    "bar": "#55606d",
    "path": "#6ea8ff",
    "set": "#f0954a",
    "file": "#4cc79a",
}
HEADINGS = {
    "costs": "What each block costs alone",
    "path": "Divergence against memory along the greedy path",
    "angular": "Angular distance over n blocks",
}
CAPTIONS = {
    "costs": "Above: KL divergence from the full model with that block alone left out, with its standard "
    "error, on a logarithmic scale. Blocks on the greedy path are blue and carry their place in it. Below: "
    "block influence, 1&nbsp;-&nbsp;cosine similarity of what enters and leaves the block.",
    "path": "Blocks go in the order that keeps the divergence smallest after each step (where it cannot "
    "tell blocks apart, perplexity), so any budget is a beginning of this path. Plans and evaluations stand "
    "at the weights that they leave; the table names the text of each.",
    "angular": "How far the residual stream turns over n blocks from block l on, 0 to 1, mean over all "
    "tokens. Where it is light, the blocks hardly change its direction. The dot marks the smallest distance "
    "of a row.",
}
OF_HALVES = {
    "costs": " Triangles are halves of blocks: upwards the attention alone, downwards the feed-forward.",
    "path": " Halves of blocks can go, too: what costs least for what it saves goes next.",
}
SAVED = {"weights": "the blocks' bytes", "kv": "the KV cache", "time": "the blocks' time"}
KINDS = {"plan": "plan", "set": "evaluation", "file": "evaluation, another file"}


def title(score: Score) -> str:
    """Return the heading of a report."""
    model = score.model
    return f"{model.name}: {model.n_layer} blocks, {model.file_type}, {model.weights_bytes / MIB:,.1f} MiB"


def measured_on(score: Score) -> str:
    """Return what a score rests on."""
    text = score.text
    return f"{text.name}: {text.n_windows} windows of {text.n_ctx} tokens, {text.n_scored:,} scored"


def page(score: Score, points: Sequence[Point], notes: Iterable[str], charts: Mapping[str, str]) -> str:
    """Return the HTML page.

    Args:
        score: what it is about.
        points: plans and evaluations.
        notes: lines that a reader should see first.
        charts: SVG by the names of HEADINGS; what is missing is left out.
    """
    return "\n".join([*_head(score), *_body(score, points, notes, charts), "</body></html>\n"])


def _head(score: Score) -> Iterator[str]:
    light, dark = ("; ".join(f"--{k}: {v}" for k, v in colours.items()) for colours in (COLOURS, DARK))
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(title(score))}</title>"
    yield f"<style>\n:root {{ color-scheme: light dark; {light} }}"
    yield f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    yield resources.files("llama_skip.report").joinpath("report.css").read_text("utf-8")
    yield "</style></head><body>"


def _body(
    score: Score, points: Sequence[Point], notes: Iterable[str], charts: Mapping[str, str]
) -> Iterator[str]:
    model = score.model
    yield f"<h1>{escape(model.name)}</h1>"
    yield (
        f"<p>{model.n_layer} blocks of {escape(model.architecture)}, width {model.n_embd:,}, "
        f"{escape(model.file_type)}, {model.weights_bytes / MIB:,.1f} MiB of weights. Perplexity of the full "
        f"model {score.perplexity:,.3f} &plusmn; {score.perplexity_error:.3f}, "
        f"on {escape(measured_on(score))}.</p>"
    )
    yield from (f'<p class="note">{escape(note)}</p>' for note in notes)
    yield from _tiles(score)
    yield from _figure("costs", charts, score)
    yield from _figure("path", charts, score)
    if score.path:
        yield from _table("path-table", _path_table(score))
    if points:
        yield "<h2>Plans and evaluations</h2>"
        yield from _table("points-table", _points_table(points))
    yield from _figure("angular", charts, score)
    if score.blocks:
        yield "<h2>All blocks</h2>"
        yield from _table("blocks-table", _blocks_table(score))
    settings = ", ".join(f"{key} {value}" for key, value in score.settings.items() if value is not None)
    yield (
        f"<p>Model {escape(model.model_id)}, file {escape(model.file_id)}, sha256 of the tokens "
        f"{escape(score.text.sha256)}. Settings: {escape(settings)}.</p>"
    )


def _tiles(score: Score) -> Iterator[str]:
    """What 10, 20 and 30 % of the blocks cost, as far as the path goes."""
    yield '<div class="tiles">'
    for n, step in ((n, score.path[n - 1]) for n in sorted({*_lengths(score)})):
        out = f"{n} of {score.model.n_layer} blocks"
        if score.halves:
            out = f"{shares(score)[n - 1]:.1%} of {SAVED[score.settings['per']]}"
        yield (
            f'<div class="tile"><span>{out} out, {step.bytes / MIB:,.1f} MiB less</span>'
            f"<b>{step.perplexity / score.perplexity - 1:+.0%} perplexity</b>"
            f"<span>KL divergence {step.kld:.3f}, top token the same in {step.top1:.0%}</span>"
            f"<span>--skip-layers {_left_out(score, n)}</span></div>"
        )
    yield "</div>"


def _lengths(score: Score) -> Iterator[int]:
    """Yield how many steps of the path the tiles are about."""
    for share in (0.1, 0.2, 0.3) if score.path else ():
        with suppress(ValueError):  # the path is too short
            if (n := n_steps(score, fraction=share)) <= len(score.path):
                yield n


def _left_out(score: Score, n: int) -> str:
    return ranges_text(step.unit for step in score.path[:n])


def _figure(name: str, charts: Mapping[str, str], score: Score) -> Iterator[str]:
    if name in charts:
        caption = CAPTIONS[name] + (OF_HALVES.get(name, "") if score.halves else "")
        yield f'<h2>{HEADINGS[name]}</h2><figure class="{name}"><div class="chart">'
        yield f"{charts[name]}</div><figcaption>{caption}</figcaption></figure>"


def _path_table(score: Score) -> Iterator[dict[str, str]]:
    for n, step in enumerate(score.path, 1):
        yield {
            "step" if score.halves else "blocks out": str(n),
            "block": unit_text(step.unit),
            "perplexity": _number(step.perplexity, ",.3f", step.perplexity_error),
            "&times; full": _number(step.perplexity / score.perplexity, ",.3f"),
            "KL divergence": _number(step.kld, ".4f", step.kld_error),
            "same top token": _number(step.top1, ".1%"),
            "MiB left": _number((score.model.weights_bytes - step.bytes) / MIB, ",.2f"),
            "*left out": _left_out(score, n),
        }


def _points_table(points: Sequence[Point]) -> Iterator[dict[str, str]]:
    for point in points:
        full = point.perplexity_full
        ratio = None if not full or point.perplexity is None else point.perplexity / full
        yield {
            "*name": escape(point.name),
            "*kind": KINDS[point.kind],
            "MiB left": _number(point.weights, ",.2f"),
            "perplexity": _number(point.perplexity, ",.3f"),
            "&times; full": _number(ratio, ",.3f"),
            "KL divergence": _number(point.kld, ".4f", point.kld_error),
            "same top token": _number(point.top1, ".1%"),
            "*text": escape(point.text),
        }


def _blocks_table(score: Score) -> Iterator[dict[str, str]]:
    for b in score.alone:
        ratio = None if b.perplexity is None else b.perplexity / score.perplexity
        yield {
            "block": unit_text(b.unit),
            "perplexity without": _number(b.perplexity, ",.3f", b.perplexity_error),
            "&times; full": _number(ratio, ",.3f"),
            "KL divergence": _number(b.kld, ".4f", b.kld_error),
            "influence": _number(b.influence, ".4f"),
            "norm in": _number(b.norm_in, ",.1f"),
            "norm out": _number(b.norm_out, ",.1f"),
            "MiB": _number(b.weights_bytes / MIB, ",.2f"),
            "KV bytes per token": _number(b.kv_bytes_per_token, ",.0f"),
            "*": f"cannot go: {escape(b.refused)}" if b.refused else "",
        }


def _table(name: str, rows: Iterable[Mapping[str, str]]) -> Iterator[str]:
    """A table of cells by their heading; columns whose heading begins with * are text."""
    found = list(rows)
    kinds = {head: ' class="text"' if head.startswith("*") else "" for head in found[0]}
    yield f'<div class="table"><table id="{name}"><thead><tr>'
    yield "".join(f"<th{kind}>{head.lstrip('*')}</th>" for head, kind in kinds.items())
    yield "</tr></thead><tbody>"
    for row in found:
        yield "<tr>" + "".join(f"<td{kinds[head]}>{cell}</td>" for head, cell in row.items()) + "</tr>"
    yield "</tbody></table></div>"


def _number(value: float | None, form: str, error: float | None = None) -> str:
    if value is None:
        return "&ndash;"
    return format(value, form) + ("" if error is None else f" &plusmn; {error:{form}}")
