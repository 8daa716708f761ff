"""The set of blocks that heals best: proposed by the error of maps, decided by KL divergence."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np

from llama_skip import skipset
from llama_skip.files.identity import block_bytes, identify
from llama_skip.files.store import Format, StrPath, part_path, read_json, write_json
from llama_skip.heal.gaps import Blocks, cheapest, costs_of_gaps, neighbours
from llama_skip.heal.heal import OWN_WRITING, heal_sets, unhealed
from llama_skip.llama.llama import Llama
from llama_skip.measure.candidates import from_json, text_windows, to_json
from llama_skip.measure.divergence import Scored, scored, summary
from llama_skip.measure.splits import chosen_on
from llama_skip.model.loaded import Trace
from llama_skip.model.options import DEFAULTS
from llama_skip.plan.choose import fits, kv_mib, memory_of
from llama_skip.plan.file import Plan, write_plan
from llama_skip.progress import Log, progress
from llama_skip.score.file import Score
from llama_skip.score.healing_runner import HealingRunner
from llama_skip.score.score import check_text, score_tokens
from llama_skip.score.search import Floats
from llama_skip.score.sizes import weights

MOST_GAPS = 4  # of a proposal
N_PROPOSED = 4  # sets of as many gaps; what gaps cost alone is known from one window
N_FINALISTS = 2  # sets that are healed
NEAR = 1.2  # a set that diverges more than so many times what the best one does retires
N_ROUNDS = 4  # times that a better neighbour is looked for
DEAR = 4.0  # a block that alone costs so many times what the middle one does is in no proposal
FORMAT = Format("llama-skip-choice", version=1)  # of what is kept of a stopped run


def choose_blocks(
    model_path: StrPath,
    score: Score,
    blocks: Iterable[int],
    *,
    text: StrPath | None = None,
    allows: Callable[[Blocks], bool] = lambda blocks: True,
    keep: Path | None = None,
    show_progress: bool = False,
    log: Log = lambda line: None,
    **options: Any,
) -> tuple[Blocks, list[dict[str, Any]]]:
    """Return the set of so many blocks that heals best, and what was measured of others.

    Gaps of a few lengths are measured alone, healed; between these, the error of the map says what others
    cost. Proposals are the set given and, for one gap, two, and so on, some sets of the least sums. They race
    by KL divergence with maps in their gaps, on the windows that the score chose on; then blocks at the edges
    of gaps are moved, one at a time, as long as that is better.

    Args:
        model_path: the GGUF file.
        score: of it, made with heal=True.
        blocks: a set to begin with, of the score's path.
        text: that of the score.
        allows: whether a set may be taken.
        keep: a file for what is measured; the same call goes on with it.
        show_progress: show a bar on stderr.
        log: called with each line that a user should see.
        options: further arguments of `Llama`.

    Returns:
        The set, and for each that raced "skip_layers", "kld", "perplexity" and "n_scored", the best first.

    Raises:
        ValueError: another text than the score's, a file of something else, or NaN in the logits.
        OSError: a file cannot be read or written.
    """
    given = tuple(sorted(blocks))
    n_ctx = score.text.n_ctx
    options = {**DEFAULTS, **options, "n_ctx": n_ctx, "hidden_states": True}
    alone = {block.block: block.kld for block in score.blocks if block.kld is not None}
    with Llama(model_path, **options) as llm, TemporaryDirectory() as folder:
        windows = text_windows(llm, score_tokens(llm, score, text, show_progress=show_progress), n_ctx)
        chosen = [windows[i] for i in chosen_on(windows)]
        with progress((N_ROUNDS + 1) * len(chosen) + 1, shown=show_progress) as bar:
            bar.say("streams of the full model")
            sizes = block_bytes(model_path)
            runner = HealingRunner(llm, windows, about=score.model, sizes=sizes, folder=Path(folder))
            found = _kept(keep, score)

            def window_done() -> None:
                bar.step()
                if keep is not None:
                    pieces = {skipset.ranges_text(key): to_json(value) for key, value in found.items()}
                    write_json(keep, FORMAT, {"of": _key(score), "found": pieces})

            race = Race(runner, chosen, found, Path(folder), window_done)
            bar.say("gaps alone")
            costs = costs_of_gaps(runner.error, race.gaps(_cheap(alone), len(given)))
            proposed = (
                cheapest(costs, llm.n_layer(), len(given), n, N_PROPOSED) for n in range(1, MOST_GAPS + 1)
            )
            sets = [given, *filter(allows, chain.from_iterable(proposed))]
            bar.say(f"{len(set(sets))} proposals")
            best = race.best(sets)
            for _ in range(N_ROUNDS):
                bar.say(f"near {skipset.ranges_text(best)}")
                before, best = best, race.best([best, *filter(allows, neighbours(best, costs))])
                if best == before:
                    break
            order = race.order(best)
    best = order[0]
    tried = [_entry(blocks, found[blocks]) for blocks in order]
    log(
        f"{len(tried)} sets of {len(best)} blocks tried with maps in their gaps: "
        f"{skipset.ranges_text(best)} heals best, KL divergence {tried[0]['kld']:.4f}"
        + (
            f" ({skipset.ranges_text(given)}: {_entry(given, found[given])['kld']:.4f})"
            if given != best and given in found
            else ""
        )
    )
    return best, tried


def _entry(blocks: Blocks, pieces: Sequence[Scored]) -> dict[str, Any]:
    ppl, kld = summary(pieces)
    return {
        "skip_layers": skipset.ranges_text(blocks),
        "kld": kld.mean,
        "perplexity": ppl.value,
        "n_scored": kld.n_tokens,
    }


def _cheap(alone: Mapping[int, float]) -> list[int]:
    """Return the blocks that may go."""
    most = DEAR * float(np.median(list(alone.values())))
    return [il for il, kld in alone.items() if kld <= most]


def _key(score: Score) -> str:
    return f"{score.model.file_id} {score.text.sha256} {score.settings['heal']}"


def _kept(keep: Path | None, score: Score) -> dict[Blocks, list[Scored]]:
    """Return what a stopped run measured."""
    if keep is None or not keep.exists():
        return {}
    content = read_json(keep, FORMAT)
    if content.get("of") != _key(score):
        return {}
    found: Mapping[str, Any] = content["found"]
    return {
        tuple(skipset.whole(skipset.parse_layers(key))): list(from_json(value))
        for key, value in found.items()
    }


def plan_healed(
    model_path: StrPath,
    score: Score,
    plan: Plan,
    *,
    text: StrPath | None = None,
    output: StrPath,
    n_tokens: int = 0,
    own_writing: float = OWN_WRITING,
    memory: Mapping[str, Any] = MappingProxyType({}),
    show_progress: bool = False,
    log: Log = lambda line: None,
    **options: Any,
) -> Plan:
    """Return a plan with the blocks that heal best instead of those it leaves out, as many, and healed.

    The best sets of choose_blocks() are healed, and the one that then diverges least on the text held out is
    taken.

    Args:
        model_path: the GGUF file.
        score: of it, made with heal=True.
        plan: of plan_blocks(), plan_memory(), plan_kv() or plan_speed() for that score. With halves its set
            is healed as it is.
        text: that of the score.
        output: the plan file to write. What is measured is kept beside it, and the same call goes on.
        memory: arguments of `Llama` that a plan for some memory was made with.
        n_tokens: tokens to heal on, where that is more than the score's text and own writing beside it.
        own_writing, show_progress, log, options: as for heal_plan().

    Returns:
        The plan; its `found.heal` has the sets that were tried, and the fits of each gap.

    Raises:
        ValueError: a score that was not made so, another text than its own, or as by heal_plan().
        OSError, llama_skip.ModelLoadError: a file cannot be read or written, or is no model.
    """
    if not score.heals:
        raise ValueError("the score was made without heal=True")
    check_text(score, text)
    if not plan.skip_layers:
        raise ValueError("nothing is left out, there is no gap to heal")
    keep, target = part_path(f"{os.fspath(output)}.choice"), plan.found.target or {}
    sets: list[dict[str, Any]] = []

    def allows(blocks: Blocks) -> bool:
        layers = skipset.ranges_text(blocks)
        if "vram" in target:
            return fits(model_path, layers, target["vram"], heals=True, **memory)
        return "kv" not in target or kv_mib(model_path, layers, **memory) <= target["kv"]

    finalists = [plan.skip_layers]
    if not score.halves:
        _, sets = choose_blocks(
            model_path,
            score,
            skipset.whole(skipset.parse_layers(plan.skip_layers)),
            text=text,
            allows=allows,
            keep=keep,
            show_progress=show_progress,
            log=log,
            **options,
        )
        finalists = [entry["skip_layers"] for entry in sets[:N_FINALISTS]]
    elif text is not None:
        with Llama(model_path, vocab_only=True, verbose=False) as llm:
            score_tokens(llm, score, text)  # raises where it is another text
    about = identify(model_path)
    parts = [part_path(f"{os.fspath(output)}.{i}") for i in range(len(finalists))]
    healed = heal_sets(
        model_path,
        [
            unhealed(about, replace(plan, skip_layers=layers, skip_scale=""), None, log)
            for layers in finalists
        ],
        parts,
        text=text,
        n_tokens=max(n_tokens, _n_tokens(score, text, own_writing)),
        own_writing=own_writing,
        n_ctx=score.text.n_ctx,
        show_progress=show_progress,
        log=log,
        **options,
    )
    made = min(healed, key=lambda plan: plan.found.kld or 0.0)
    assert made.found.heal is not None
    units = skipset.parse_layers(made.skip_layers)
    sets.sort(key=lambda entry: entry["skip_layers"] != made.skip_layers)
    found = replace(
        made.found,
        target=plan.found.target,
        metric=score.metric,
        bytes=int(weights(score).of(units)),
        heal=replace(made.found.heal, sets=sets),
    )
    made = replace(made, found=found, runtime=plan.runtime)
    write_plan(output, made)
    if plan.runtime and "vram" in target:
        made = replace(made, runtime={**plan.runtime, "memory": memory_of(model_path, output, **memory)})
        write_plan(output, made)
    for done in (keep, *parts):
        done.unlink(missing_ok=True)
    return made


def _n_tokens(score: Score, text: StrPath | None, own_writing: float) -> int:
    """Return how many tokens to heal on: all of the score's text, beside own writing."""
    n_windows = score.text.n_windows
    n_all = n_windows if text is None else round(n_windows / (1 - own_writing))
    return (n_all if n_all - n_windows >= 2 else n_windows) * score.text.n_ctx


class Race:
    """Measures sets on window after window, and remembers what it measured.

    Args:
        runner: gives the logits.
        windows: of the text.
        on_window: called after each window of each race.
        found: what was measured before, by set; appended to.
        folder: for temporary files, the full model's streams and logits of each window: 4 bytes x tokens x
            (blocks x width + half the vocabulary).
    """

    def __init__(
        self,
        runner: HealingRunner,
        windows: Sequence[Sequence[int]],
        found: dict[Blocks, list[Scored]],
        folder: Path,
        on_window: Callable[[], object],
    ) -> None:
        self.runner = runner
        self.windows = windows
        self.found = found
        self.folder = folder
        self.on_window = on_window
        self.raced: set[Blocks] = set()

    def gaps(self, blocks: Sequence[int], n_blocks: int) -> dict[range, float]:
        """Return what some gaps alone cost on the first window, a few lengths of each first block.

        Args:
            blocks: those that may go.
            n_blocks: in a set; a gap of its neighbours may have one more.
        """
        gaps = []
        for run in skipset.gaps(blocks):
            for il in run:
                longest = min(run.stop - il, n_blocks + 1)
                lengths = {1, (longest + 1) // 2, min(n_blocks, longest), longest}
                gaps += [range(il, il + n) for n in sorted(lengths)]
        self._measure([tuple(gap) for gap in gaps], 0)
        self.on_window()
        known = {gap: self.found.get(tuple(gap)) for gap in gaps}
        return {gap: float(pieces[0].kld.mean()) for gap, pieces in known.items() if pieces}

    def best(self, sets: Sequence[Blocks]) -> Blocks:
        """Return the set that diverges least; those that diverge much more retire on the way.

        More than chance among tokens explains does not do: what is better in most windows can be by far the
        worse in the first.
        """
        alive = list(dict.fromkeys(sets))
        self.raced.update(alive)
        for i in range(len(self.windows)):
            self._measure(alive, i)
            means = {
                blocks: float(self._kld(blocks, i + 1).mean()) for blocks in alive if blocks in self.found
            }
            alive = [blocks for blocks, mean in means.items() if mean <= NEAR * min(means.values())]
            self.on_window()
            if len(alive) == 1:
                break
        return min(alive, key=lambda blocks: float(self._kld(blocks, len(self.found[blocks])).mean()))

    def order(self, best: Blocks) -> list[Blocks]:
        """Return all sets that raced, those first that diverge least; the first few are measured to the end.

        One that retired is judged by the windows where it was measured.
        """

        def more(blocks: Blocks) -> float:
            n = len(self.found[blocks])
            return float((self._kld(blocks, n) - self._kld(best, n)).mean())

        def measured(sets: Sequence[Blocks]) -> list[Blocks]:
            for i in range(len(self.windows)):
                self._measure(sets, i)
            return sorted((blocks for blocks in sets if blocks in self.found), key=more)

        measured([best])
        others = sorted((blocks for blocks in self.raced if blocks in self.found), key=more)
        first = measured(others[:N_FINALISTS])
        self.on_window()
        return [*first, *others[N_FINALISTS:]]

    def _measure(self, sets: Iterable[Blocks], i: int) -> None:
        """Measure the sets of which window i is the next one; those that the model refuses are forgotten."""
        missing = [blocks for blocks in sets if len(self.found.get(blocks, [])) <= i]
        if missing:
            window, trace = self.windows[i], self._trace(i)
            for blocks in missing:
                try:
                    logits = self.runner.among(window, blocks, trace)
                    self.found.setdefault(blocks, []).append(scored(logits, window, trace.logits))
                except ValueError:
                    self.found.pop(blocks, None)

    def _trace(self, i: int) -> Trace:
        """Return the full model's trace of a window."""
        path = self.folder / f"{i}.npz"
        if not path.exists():
            np.savez(path, **self.runner.trace(self.windows[i], [])._asdict())
        with np.load(path) as kept:
            return Trace(kept["blocks"].tolist(), kept["inputs"], kept["logits"])

    def _kld(self, blocks: Blocks, n: int) -> Floats:
        return np.concatenate([piece.kld for piece in self.found[blocks][:n]])
