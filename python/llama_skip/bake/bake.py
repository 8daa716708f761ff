"""`llama-skip bake`: a file without some blocks, for the unpatched llama.cpp, exact or refused."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFValueType as Kind

from llama_skip.bake.entries import baked_entries, baked_tensors
from llama_skip.bypass import bypass
from llama_skip.files import identity
from llama_skip.files.gguf import Entry, Gguf, make_array, make_entry, n_chunks, read_gguf, write_gguf
from llama_skip.files.identity import Identity
from llama_skip.files.store import StrPath, check_writable, is_one_of, replacing
from llama_skip.plan.file import Plan, read_plan
from llama_skip.progress import progress
from llama_skip.skipset import Layers, Scale, layers_text, ranges_text, resolve, scale_text, whole


@dataclass(frozen=True)
class Baked:
    """What bake_model() wrote.

    Attributes:
        path: the file.
        blocks: the original number of each of its blocks.
        skip_layers: those that are gone.
        n_bytes: the size of the file.
        note: a line to show where the plan was made with another file of the same model, else "".
        imatrix: the importance matrix that fits it, if one was given.
    """

    path: Path
    blocks: list[int]
    skip_layers: str
    n_bytes: int
    note: str = ""
    imatrix: Path | None = None


def bake_model(
    model: StrPath,
    output: StrPath,
    *,
    plan: Plan | StrPath | None = None,
    skip_layers: Layers | None = None,
    skip_scale: Scale | None = None,
    imatrix: StrPath | None = None,
    verbose: bool = False,
) -> Baked:
    """Write a model without some blocks, the others numbered anew, their tensors byte for byte the same.

    The unpatched llama.cpp computes the same logits from it as this library does with the blocks left out at
    load, bit for bit on the CPU, or it is not written.

    Args:
        model: a GGUF file, the first one of a split model.
        output: the file to write; a split model becomes one file.
        plan: what to leave out, or its file; instead of skip_layers and skip_scale.
        skip_layers: what to leave out, as for `Llama`.
        skip_scale: the factors of gaps; a block cannot hold one, so only 1 is possible.
        imatrix: the full model's importance matrix, a GGUF of llama-imatrix. The one that fits the new file
            is written beside it: x.imatrix.gguf beside x.gguf.
        verbose: show a progress bar on stderr.

    Raises:
        ValueError: nothing or too much is left out, the plan is for another model, a factor, `output` is the
            model itself, or the result would not be the same, with the reason.
        FileNotFoundError: no such model or plan.
        OSError: the output cannot be written; what was there before stays.
        llama_skip.ModelLoadError: not a GGUF file.
    """
    if (plan is None) == (skip_layers is None):
        raise ValueError("name either a plan or skip_layers")
    about = identity.identify(model)
    chosen = plan if isinstance(plan, Plan) else None if plan is None else read_plan(plan)
    note = ""
    if chosen is not None:
        if skip_scale is not None:
            raise ValueError("skip_scale is for skip_layers, a plan has its own")
        note = identity.check_same(chosen.model, about, "the plan")
        if chosen.bypass:
            raise ValueError(
                f"a plan with a bypass ({bypass.described(chosen.bypass)}) cannot be baked: no tensor of an "
                "unpatched llama.cpp holds it"
            )
        if chosen.disk_layers:
            raise ValueError(
                f"a plan with blocks on disk ({chosen.disk_layers}) cannot be baked: a file does not say "
                "where its blocks lie"
            )
        layers, scale = chosen.skip_layers, chosen.skip_scale
    else:
        layers, scale = layers_text(skip_layers, "skip_layers"), scale_text(skip_scale, "skip_scale")
    out = _checked(model, layers, scale)
    gguf = read_gguf(model)
    entries = baked_entries(gguf, out)
    tensors = baked_tensors(gguf, out)
    blocks = [il for il in range(int(gguf.value(f"{gguf.architecture}.block_count"))) if il not in out]
    for entry in _record(about, blocks, out, chosen):
        entries[entry.key] = entry
    matrix = None if imatrix is None else _read_imatrix(imatrix, gguf)
    target = Path(f"{os.fspath(output).removesuffix('.gguf')}.imatrix.gguf")
    read = [*gguf.paths, *(matrix.paths if matrix else [])]
    for path in [output, *([target] if matrix else [])]:
        _check_output(read, path)
    with progress(n_chunks(tensors), shown=verbose) as bar, replacing(output) as file:
        bar.say(f"writing {Path(output).name}")
        write_gguf(file, entries.values(), tensors, gguf.alignment, bar)
    if matrix is not None:
        few = baked_tensors(matrix, out)
        with progress(n_chunks(few), shown=False) as bar, replacing(target) as file:
            write_gguf(file, matrix.entries.values(), few, matrix.alignment, bar)
    size = os.path.getsize(output)
    return Baked(Path(output), blocks, ranges_text(out), size, note, target if matrix else None)


def _read_imatrix(imatrix: StrPath, model: Gguf) -> Gguf:
    matrix = read_gguf(imatrix)
    if matrix.value("general.type") != "imatrix":
        raise ValueError(f"{imatrix}: not an importance matrix of llama-imatrix")
    known = {t.name for t in model.tensors}
    strange = [t.name.decode() for t in matrix.tensors if t.name.rpartition(b".")[0] not in known]
    if strange:
        raise ValueError(f"{imatrix}: an importance matrix of another model, it has {strange[0]}")
    return matrix


def _checked(model: StrPath, layers: str, scale: str) -> set[int]:
    """Return the blocks of a set that can be left out and that is not empty."""
    units, factors = resolve(model, layers or "none", scale)
    blocks = whole(units)
    if halves := ranges_text(unit for unit in units if not isinstance(unit, int)):
        raise ValueError(
            f"halves of blocks ({halves}) cannot be baked: an unpatched llama.cpp runs both halves"
        )
    if not blocks:
        raise ValueError("no block is left out, there is nothing to bake")
    if factors:
        raise ValueError(
            f"gaps scaled by {factors} cannot be baked: what the blocks behind it add is not scaled, so no "
            "weight can hold the factor exactly"
        )
    return set(blocks)


def _record(about: Identity, blocks: list[int], out: set[int], plan: Plan | None) -> list[Entry]:
    """Return what the file says of its making."""
    texts = {
        "model_id": about.model_id,
        "file_id": about.file_id,
        "name": about.name,
        "layers": ranges_text(out),
        "method": plan.found.method if plan else "given",
    }
    return [
        make_entry("skip.bake.version", Kind.UINT32, 1),
        *(make_entry(f"skip.bake.{key}", Kind.STRING, text) for key, text in texts.items()),
        make_array("skip.bake.blocks", Kind.INT32, blocks),
    ]


def _check_output(read: list[Path], output: StrPath) -> None:
    if is_one_of(output, read):
        raise ValueError(f"{os.fspath(output)} is one of the files that are read, name another one")
    check_writable(output)
