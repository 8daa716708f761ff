"""`llama-skip report`: a score, and plans and evaluations beside it, as one HTML file or a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path

from llama_skip.errors import MIB
from llama_skip.eval import file as evalfile
from llama_skip.eval.file import EvalRow, Evaluation, read_evaluation
from llama_skip.files.identity import check_same
from llama_skip.files.store import Format, StrPath, check_writable, read_json, replacing
from llama_skip.plan import file as planfile
from llama_skip.plan.file import Plan, is_gguf, read_plan
from llama_skip.report import charts, page
from llama_skip.report.charts import Point
from llama_skip.score.file import Score, read_score
from llama_skip.score.sizes import weights
from llama_skip.skipset import parse_layers

Other = Plan | Evaluation | StrPath
READERS: dict[Format, Callable[[StrPath], Plan | Evaluation]] = {
    planfile.FORMAT: read_plan,
    evalfile.FORMAT: read_evaluation,
}


def write_report(score: Score | StrPath, others: Iterable[Other], path: StrPath) -> list[str]:
    """Show what each block costs, the angular distances, and the greedy path with what is beside it.

    Args:
        score: what `llama-skip score` found, or its file.
        others: plans and evaluations of the same model, or their files.
        path: the report: a picture where the name ends in .png, else a self-contained HTML file.

    Returns:
        Lines about what a reader should know: measured on another file, not complete.

    Raises:
        ValueError: a file of another format, or about another model.
        OSError: a file cannot be read or written.
        RuntimeError: matplotlib is not installed.
    """
    return _write(score, others, {path: _is_png(path)})


def _is_png(path: StrPath) -> bool:
    return Path(path).suffix.lower() == ".png"


def _write(score: Score | StrPath, others: Iterable[Other], files: Mapping[StrPath, bool]) -> list[str]:
    """Write a report into files, each with whether it is a picture, once all of it is there."""
    for path in files:
        check_writable(path)
    if not isinstance(score, Score):
        score = read_score(score)
    points, notes = points_of(score, others)
    contents: dict[StrPath, bytes] = {}
    for path, is_picture in files.items():
        if is_picture:
            contents[path] = picture(score, points)
        else:
            contents[path] = page.page(score, points, notes, drawn(score, points)).encode()
    for path, content in contents.items():
        with replacing(path) as file:
            file.write(content)
    return notes


def points_of(score: Score, others: Iterable[Other]) -> tuple[list[Point], list[str]]:
    """Return what is shown beside a path, and lines about it.

    Raises:
        ValueError, OSError: as by write_report().
    """
    points: list[Point] = []
    notes = [] if score.complete else ["The score is not complete: `llama-skip score` goes on with it."]
    for other in others:
        name = ""
        if isinstance(other, Plan | Evaluation):
            found = other
        else:
            name = Path(other).name
            found = _read(other)
        note = check_same(found.model, score.model, name or type(found).__name__.lower())
        notes += [note] if note else []
        points += [_of_plan(found, name, score)] if isinstance(found, Plan) else _of_evaluation(found)
    return points, notes


def _read(path: StrPath) -> Plan | Evaluation:
    if is_gguf(path):
        return read_plan(path)
    name = read_json(path, *READERS)["format"]
    return next(read for kind, read in READERS.items() if kind.format == name)(path)


def _of_plan(plan: Plan, name: str, score: Score) -> Point:
    found = plan.found
    is_same = plan.model.file_id == score.model.file_id
    left_out = _left_out(plan, score) if is_same else found.bytes
    whole = score.model.weights_bytes if is_same else plan.model.weights_bytes
    whole += sum(part.n_bytes for part in plan.bypass)
    return Point(
        name=Path(name).stem or plan.skip_layers or "none",
        kind="plan",
        weights=None if left_out is None or not whole else (whole - left_out) / MIB,
        kld=found.kld,
        kld_error=found.kld_error,
        perplexity=found.perplexity,
        perplexity_full=found.perplexity_full,
        top1=found.top1,
        text=found.text.name if found.text else "",
    )


def _left_out(plan: Plan, score: Score) -> float | None:
    """Return the bytes that a plan leaves out; a score of blocks alone does not know those of halves."""
    units, sizes = parse_layers(plan.skip_layers), weights(score)
    is_known = all(isinstance(unit, int) or unit in sizes.halves for unit in units)
    return sizes.of(units) if is_known else plan.found.bytes


def _of_evaluation(evaluation: Evaluation) -> list[Point]:
    full = evaluation.rows[0].perplexity if evaluation.rows else None

    def point(row: EvalRow) -> Point:
        return Point(
            name=row.name,
            kind="set" if row.file_id == evaluation.model.file_id else "file",
            weights=sum(device.weights for device in row.memory.values()) or None,
            kld=row.kld,
            kld_error=row.kld_error,
            perplexity=row.perplexity,
            perplexity_full=full,
            top1=row.top1,
            text=evaluation.text.name,
        )

    return [point(row) for row in evaluation.rows]


def drawn(score: Score, points: Sequence[Point]) -> dict[str, str]:
    """Return the charts of a page by their names, as SVG; those without data are left out."""
    found: dict[str, str] = {}
    with charts.drawing() as figure:
        if score.blocks:
            costs = figure(figsize=(10, 5), layout="constrained")
            top, bottom = costs.subplots(2, 1, sharex=True, height_ratios=(2, 1))
            charts.draw_costs(top, score)
            charts.draw_influence(bottom, score)
            found["costs"] = charts.to_svg(costs, "costs", "Bars: KL divergence and influence of each block")
        if score.path:
            path = figure(figsize=(10, 5), layout="constrained")
            charts.draw_path(path.subplots(), score, points)
            found["path"] = charts.to_svg(path, "path", "KL divergence against the MiB of weights left")
        if _has_angles(score):
            angular = figure(figsize=(7.5, 5.6), layout="constrained")
            axes = angular.subplots()
            angular.colorbar(charts.draw_angular(axes, score), label="angular distance", shrink=0.8)
            found["angular"] = charts.to_svg(angular, "angular", "Heat map of angular distances")
    return found


def picture(score: Score, points: Sequence[Point]) -> bytes:
    """Return all charts in one PNG."""
    out = BytesIO()
    with charts.drawing() as figure:
        sheet = figure(figsize=(14, 11), layout="constrained", facecolor="white")
        head, upper, lower = sheet.subfigures(3, 1, height_ratios=(0.12, 1.1, 1))
        head.text(0.015, 0.7, page.title(score), fontsize=14, weight="bold", va="center")
        head.text(0.015, 0.15, page.measured_on(score), color=charts.COLOURS["quiet"], va="center")
        top, bottom = upper.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        charts.draw_costs(top, score)
        top.set_title(page.HEADINGS["costs"])
        charts.draw_influence(bottom, score)
        left, right = lower.subplots(1, 2, width_ratios=(1.35, 1))
        charts.draw_path(left, score, points)
        left.set_title(page.HEADINGS["path"])
        right.set_title(page.HEADINGS["angular"])
        if _has_angles(score):
            lower.colorbar(charts.draw_angular(right, score), label="angular distance", shrink=0.8)
        else:
            right.set_axis_off()
        sheet.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
        sheet.savefig(out, format="png", dpi=130, metadata={"Software": None})
    return out.getvalue()


def _has_angles(score: Score) -> bool:
    return any(value is not None for row in score.angular for value in row)
