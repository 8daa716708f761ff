"""Pictures of docs/quality.md, from its tables: python benchmarks/pictures.py

For each model the perplexity over the weights that are loaded: the greedy path with nothing in its gaps, the
same healed, and smaller quantizations of the same file. From the table with `plan --heal` also the KL
divergence over weights, prompt speed where it was measured and KV cache, as shares of the full model's.
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

DOCS = Path(__file__).resolve().parent.parent / "docs"
PATHS = {"identity": "blocks left out", "healed": "left out and healed"}
HEALING = "plan --heal"
AXES = {"MiB": "weights loaded", "prompt": "prompt speed", "KV": "KV cache"}  # as shares of the full model's
Row = dict[str, str]


def tables(text: str) -> dict[str, list[Row]]:
    """Return the rows of each model's tables, in order."""
    found: dict[str, list[Row]] = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        lines = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("| ")]
        if lines and lines[0][:2] == ["share", "chosen by"]:
            names, *rows = [[cell.strip() for cell in line] for line in lines]
            found.setdefault(heading.partition(",")[0], []).extend(
                dict(zip(names, row, strict=False)) for row in rows
            )
    return found


def draw(model: str, rows: list[Row], path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    full = next(row for row in rows if row["chosen by"] == "full model")
    for fill, label in PATHS.items():
        # the last table of a model is that of the default
        greedy = {row["share"]: row for row in rows if row["chosen by"] == "greedy" and row["gap"] == fill}
        points = [full, *greedy.values()]
        axes.plot(
            [float(row["MiB"]) for row in points],
            [float(row["perplexity"]) for row in points],
            "o-",
            label=label,
        )
        for share, row in greedy.items():
            at = (float(row["MiB"]), float(row["perplexity"]))
            axes.annotate(share, at, xytext=(6, 4), textcoords="offset points", fontsize=8)
    quants = [row for row in rows if row["share"] == "0%" and row["chosen by"] != "full model"]
    axes.plot(
        [float(row["MiB"]) for row in quants],
        [float(row["perplexity"]) for row in quants],
        "s",
        color="black",
        label="smaller quantization",
    )
    for row in quants:
        at = (float(row["MiB"]), float(row["perplexity"]))
        axes.annotate(row["chosen by"], at, xytext=(6, -10), textcoords="offset points", fontsize=8)
    axes.set(title=model, xlabel="weights loaded, MiB", ylabel="perplexity (judging text)", yscale="log")
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_minor_formatter("{x:.0f}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def draw_costs(model: str, rows: list[Row], path: Path) -> None:
    """Draw what is saved in three ways, beside what it costs; `rows` are those of one run."""
    full = next(row for row in rows if row["chosen by"] == "full model")
    kinds = {
        "greedy, nothing in its gaps": [
            r for r in rows if (r["chosen by"], r["gap"]) == ("greedy", "identity")
        ],
        HEALING: [r for r in rows if r["chosen by"] == HEALING],
        "smaller quantization": [r for r in rows if r["share"] == "0%" and r is not full],
    }
    there = {column: label for column, label in AXES.items() if column in full}
    size = (1.0 + 3.2 * len(there), 3.6)
    figure, panels = pyplot.subplots(1, len(there), figsize=size, layout="constrained", sharey=True)
    for axes, (column, label) in zip(panels, there.items(), strict=True):
        for (kind, of_kind), marker in zip(kinds.items(), ("o-", "D-", "s"), strict=True):
            shares = [float(row[column]) / float(full[column]) for row in of_kind]
            klds = [float(row["KL"].split()[0]) for row in of_kind]  # "(missed)" may be behind it
            axes.plot(shares, klds, marker, label=kind)
            for row, *at in zip(of_kind, shares, klds, strict=True):
                name = row["share"] if row["share"] != "0%" else row["chosen by"]
                axes.annotate(name, at, xytext=(5, 3), textcoords="offset points", fontsize=7)
        axes.set(xlabel=label)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="KL divergence, nats a token")
    panels[0].legend(fontsize=8)
    figure.suptitle(model)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    matplotlib.rcParams["svg.hashsalt"] = "llama-skip"
    folder = DOCS / "pictures"
    folder.mkdir(exist_ok=True)
    for model, rows in tables((DOCS / "quality.md").read_text(encoding="utf-8")).items():
        name = model.split("-")[0].lower()
        draw(model, [row for row in rows if "KV" not in row], folder / f"quality-{name}.svg")
        if run := [row for row in rows if "KV" in row]:
            draw_costs(model, run, folder / f"costs-{name}.svg")


if __name__ == "__main__":
    main()
