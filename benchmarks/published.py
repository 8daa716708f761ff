"""The sets of docs/quality.md as plans and a sidecar: python benchmarks/published.py MODEL [-d FOLDER]

Writes NAME-10.json, -20, -30: the greedy path without anything in its gaps, with the perplexity and KL
divergence that the table gives on the judging text; and MODEL's .skip.gguf with all of them, as @p10, @p20,
@p30; with --score for `auto:` too.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from llama_skip import Plan, annotate_model, identify, write_plan
from llama_skip.plan.found import Found
from pictures import DOCS, tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("-d", "--folder", type=Path, default=DOCS / "sets")
    parser.add_argument("--score", help="a score file of the model, for auto:")
    args = parser.parse_args()
    identity = identify(args.model)
    name = args.model.name.removesuffix(".gguf")
    short = name.split("-")[0].lower()
    headings = tables((DOCS / "quality.md").read_text(encoding="utf-8"))
    rows = next(rows for heading, rows in headings.items() if heading.lower().startswith(short))
    full = next(row for row in rows if row["chosen by"] == "full model")
    plans: dict[str, Plan | str | os.PathLike[str]] = {}
    for row in rows:
        key = f"p{row['share'].rstrip('%')}"
        if row["chosen by"] == "greedy" and row["gap"] == "identity" and key not in plans:
            found = Found(
                method="greedy",
                kld=float(row["KL"]),
                perplexity=float(row["perplexity"]),
                perplexity_full=float(full["perplexity"]),
            )
            plan = Plan(identity, row["left out"], found=found)
            path = args.folder / f"{name}-{key[1:]}.json"
            write_plan(path, plan)
            plans[key] = path
    # a sidecar is written beside its model
    with TemporaryDirectory() as folder:
        model = Path(folder) / args.model.name
        model.symlink_to(args.model.resolve())
        made = annotate_model(model, score=args.score, plans=plans)
        shutil.copyfile(made.path, args.folder / made.path.name)
    print(args.folder / made.path.name, ", ".join(f"@{plan}" for plan in made.plans))


if __name__ == "__main__":
    main()
