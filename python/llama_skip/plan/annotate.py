"""`llama-skip annotate`: scores and named plans as metadata of a model, or of a small file beside it."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFValueType as Kind

from llama_skip.files import identity
from llama_skip.files.gguf import Entry, Gguf, make_array, make_entry, n_chunks, read_gguf, write_gguf
from llama_skip.files.identity import Identity
from llama_skip.files.store import StrPath, check_writable, is_one_of, replacing
from llama_skip.plan.file import Plan, read_plan
from llama_skip.progress import progress
from llama_skip.score.file import Score, read_score
from llama_skip.score.sizes import shares
from llama_skip.skipset import resolve

VERSION = 1
WITH_HALVES = 2  # of a score; a program that knows blocks alone has to refuse it
PLAN_KEY = re.compile(r"skip\.plan\.([A-Za-z0-9_-]+)\.[a-z_]+")
NAN = float("nan")


@dataclass(frozen=True)
class Annotated:
    """What annotate_model() wrote.

    Attributes:
        path: the file.
        plans: the names of all plans in it.
        has_score: whether it has a score.
        notes: lines to show: a score or plan was made with another file of the same model, or the model's own
            metadata comes before what was written beside it.
    """

    path: Path
    plans: list[str]
    has_score: bool
    notes: list[str]


def annotate_model(
    model: StrPath,
    *,
    score: Score | StrPath | None = None,
    plans: Mapping[str, Plan | StrPath] | None = None,
    output: StrPath | None = None,
    verbose: bool = False,
) -> Annotated:
    """Write a model's scores and named plans where every tool finds them; `docs/metadata.md` has the keys.

    Other plans that are already there are kept, and so is a score where none is given.

    Args:
        model: a GGUF file, the first one of a split model.
        score: what `score_model` returned, or its file.
        plans: by name (letters, digits, _ and -, not a number).
        output: a copy of the model with the metadata, tensors byte for byte the same; a split model becomes
            one file. None for a file of metadata alone, sidecar_path(model).
        verbose: show a progress bar on stderr.

    Raises:
        ValueError: nothing is given, a name that is not allowed, a score that is not complete or of another
            model, a plan of another model or with a set that it refuses.
        FileNotFoundError: no such model, score or plan.
        OSError: the output cannot be written; what was there before stays.
        llama_skip.ModelLoadError: not a GGUF file.
    """
    if score is None and not plans:
        raise ValueError("name a score, or a plan")
    about = identity.identify(model)
    gguf = read_gguf(model)
    target = sidecar_path(model) if output is None else Path(output)
    notes: list[str] = []
    new: list[Entry] = []
    if score is not None:
        found = score if isinstance(score, Score) else read_score(score)
        notes.append(identity.check_same(found.model, about, "the score"))
        new += score_entries(found)
    for name, given in (plans or {}).items():
        plan = given if isinstance(given, Plan) else read_plan(given)
        notes.append(identity.check_same(plan.model, about, f"plan {name}"))
        _check_name(name)
        resolve(model, plan.skip_layers or "none", plan.skip_scale)
        new += plan_entries(name, plan)

    base = dict(gguf.entries)
    if output is None:
        base = {"general.architecture": base["general.architecture"]}
        base |= _known(target, read_gguf(target), about) if target.exists() else {}
        notes += _hidden(gguf, {e.key for e in new})
    else:
        _known(Path(model), gguf, about)
        if len(gguf.paths) > 1 and is_one_of(target, gguf.paths):
            raise ValueError(f"{target} is a file of the split model, name another one to write")
    replaced = [f"skip.plan.{name}." for name in plans or {}] + (["skip.score."] if score is not None else [])
    entries = {k: e for k, e in base.items() if not k.startswith(tuple(replaced))}
    entries |= {e.key: e for e in new}
    _write(gguf, target, entries, with_tensors=output is not None, verbose=verbose)
    names = {match[1] for match in map(PLAN_KEY.fullmatch, entries) if match}
    return Annotated(target, sorted(names), "skip.score.version" in entries, [n for n in notes if n])


def sidecar_path(model: StrPath) -> Path:
    """Return the file of metadata beside a model: model.skip.gguf beside model.gguf."""
    path = Path(model)
    return path.with_name(path.name.removesuffix(".gguf") + ".skip.gguf")


def _write(
    gguf: Gguf, target: Path, entries: Mapping[str, Entry], *, with_tensors: bool, verbose: bool
) -> None:
    tensors = gguf.tensors if with_tensors else []
    check_writable(target)
    with progress(n_chunks(tensors), shown=verbose) as bar, replacing(target) as file:
        bar.say(f"writing {target.name}")
        write_gguf(file, entries.values(), tensors, gguf.alignment if with_tensors else 32, bar)


def _known(path: Path, gguf: Gguf, about: Identity) -> dict[str, Entry]:
    """Return the scores and plans that a file has already.

    Raises:
        ValueError: they are about another model.
    """
    found = {k: e for k, e in gguf.entries.items() if k.startswith(("skip.score.", "skip.plan."))}
    for key, entry in found.items():
        if key.endswith(".model_id") and entry.value != about.model_id:
            raise ValueError(f"{path}: {key} is another model's, {entry.value}; this one is {about.model_id}")
    return found


def _hidden(gguf: Gguf, keys: Container[str]) -> list[str]:
    """Return lines about what is written beside a model that has its own."""
    own = ["a score"] if "skip.score.path" in keys and "skip.score.path" in gguf.entries else []
    plans = [key for key in gguf.entries if key.endswith(".version") and PLAN_KEY.fullmatch(key)]
    own += [f"@{key.split('.')[2]}" for key in plans if key in keys]
    if not own:
        return []
    return [
        f"{gguf.paths[0].name} has {', '.join(own)} in its own metadata, which comes first: what was written "
        "beside it is not read; -o writes a copy of the model with it"
    ]


def _check_name(name: str) -> None:
    if not re.fullmatch("[A-Za-z0-9_-]+", name) or name.isdigit():
        raise ValueError(f"plan name {name!r}: expected letters, digits, _ and -, and not a number alone")


def score_entries(score: Score) -> list[Entry]:
    """Return the metadata of a score.

    Raises:
        ValueError: it is not complete.
    """
    if not score.complete:
        raise ValueError(
            "the score is not complete: run `llama-skip score` again, it goes on where it stopped"
        )
    if "heal" in score.settings:
        raise ValueError(
            "the score's path has maps in its gaps, which auto: cannot hold; plan --heal makes a file"
        )
    blocks = sorted(score.blocks, key=lambda b: b.block)
    if [b.block for b in blocks] != list(range(score.model.n_layer)):
        raise ValueError(f"the score has {len(blocks)} blocks, its model has {score.model.n_layer}")
    floats: dict[str, list[float | None]] = {
        "block.influence": [b.influence for b in blocks],
        "block.perplexity": [b.perplexity for b in blocks],
        "block.kld": [b.kld for b in blocks],
        "path.perplexity": [step.perplexity for step in score.path],
        "path.kld": [step.kld for step in score.path],
    }
    return [
        *_header("skip.score", score.model, WITH_HALVES if score.halves else VERSION),
        make_entry("skip.score.metric", Kind.STRING, score.metric),
        make_entry("skip.score.dataset", Kind.STRING, score.text.name),
        make_entry("skip.score.n_tokens", Kind.UINT32, score.text.n_tokens),
        make_entry("skip.score.n_ctx", Kind.UINT32, score.text.n_ctx),
        make_entry("skip.score.perplexity", Kind.FLOAT32, score.perplexity),
        make_array("skip.score.path", Kind.INT32, [step.block for step in score.path]),
        *(
            make_array(f"skip.score.{key}", Kind.FLOAT32, [NAN if v is None else v for v in values])
            for key, values in floats.items()
        ),
        *(_of_halves(score) if score.halves else []),
    ]


def _of_halves(score: Score) -> list[Entry]:
    return [
        make_entry("skip.score.per", Kind.STRING, score.settings["per"]),
        make_array("skip.score.path.half", Kind.STRING, [step.half for step in score.path]),
        make_array("skip.score.path.share", Kind.FLOAT32, shares(score)),
    ]


def plan_entries(name: str, plan: Plan) -> list[Entry]:
    """Return the metadata of a plan; what is not known is left out."""
    if plan.bypass:
        raise ValueError(
            f"plan {name!r} has a bypass with tensors, which metadata cannot hold: use its file, "
            "--skip-layers @FILE"
        )
    prefix = f"skip.plan.{name}"
    texts = {
        "layers": plan.skip_layers or "none",
        "scale": plan.skip_scale,
        "disk_layers": plan.disk_layers,
        "disk_scale": plan.disk_scale,
        "method": plan.found.method,
    }
    numbers = {"kld": plan.found.kld, "perplexity": plan.found.perplexity}
    return [
        *_header(prefix, plan.model),
        *(make_entry(f"{prefix}.{key}", Kind.STRING, text) for key, text in texts.items() if text),
        *(
            make_entry(f"{prefix}.{key}", Kind.FLOAT32, value)
            for key, value in numbers.items()
            if value is not None
        ),
    ]


def _header(prefix: str, about: Identity, version: int = VERSION) -> list[Entry]:
    return [
        make_entry(f"{prefix}.version", Kind.UINT32, version),
        make_entry(f"{prefix}.model_id", Kind.STRING, about.model_id),
        make_entry(f"{prefix}.file_id", Kind.STRING, about.file_id),
    ]
