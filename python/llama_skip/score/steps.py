"""A score as it grows: the stream, each block and half alone, and step after step of the path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from llama_skip.files.identity import block_bytes, half_bytes
from llama_skip.files.store import StrPath
from llama_skip.measure.divergence import summary
from llama_skip.progress import Progress
from llama_skip.score import sizes
from llama_skip.score.file import BlockScore, Score, Step
from llama_skip.score.influence import StreamStatistics
from llama_skip.score.runner import Runner
from llama_skip.score.search import Sweep
from llama_skip.skipset import HALVES, block_of


def with_sizes(score: Score, model_path: StrPath) -> Score:
    """Return the score with what each block takes, and each half where these can go."""
    kv_bytes = sizes.kv_bytes(model_path, score.settings, score.model.n_layer)
    blocks = [
        BlockScore(il, weights_bytes=n, kv_bytes_per_token=kv)
        for il, (n, kv) in enumerate(zip(block_bytes(model_path), kv_bytes, strict=True))
    ]
    found = half_bytes(model_path) if "halves" in score.settings else {}
    halves = [
        BlockScore(
            il,
            weights_bytes=found[il, half],
            kv_bytes_per_token=kv_bytes[il] if half == HALVES[0] else 0.0,
            half=half,
        )
        for il in range(score.model.n_layer)
        for half in HALVES
        if (il, half) in found
    ]
    return replace(score, blocks=blocks, halves=halves)


def with_stream(score: Score, runner: Runner, windows: Sequence[Sequence[int]], bar: Progress) -> Score:
    """Return the score with what the residual stream says."""
    llm = runner.llm
    if not runner.has_states:
        bar.step(len(windows))
        return score
    bar.say("residual stream")
    statistics = StreamStatistics(score.model.n_layer)
    llm.set_mask(None)
    for index, window in enumerate(windows):
        states = llm.hidden_states(window)
        runner.keep(index, states.inputs[-1])
        statistics.add(states.inputs, states.outputs[-1])
        bar.step()
    norms = statistics.norms.tolist()
    blocks = [
        replace(block, influence=influence, norm_in=norm_in, norm_out=norm_out)
        for block, influence, norm_in, norm_out in zip(
            score.blocks, statistics.influence.tolist(), norms, norms[1:], strict=False
        )
    ]
    return replace(score, blocks=blocks, angular=statistics.angular)


def with_first(score: Score, state: Sweep) -> Score:
    """Return the score with what the first step measured: each block and half alone."""
    full, _ = summary(state.base)
    return replace(
        score,
        perplexity=full.value,
        perplexity_error=full.error,
        blocks=list(_measured(score.blocks, state, full.value)),
        halves=list(_measured(score.halves, state, full.value)),
    )


def _measured(blocks: Iterable[BlockScore], state: Sweep, full: float) -> Iterable[BlockScore]:
    """Yield the blocks with what was measured of them, perplexity as it would be on all windows."""
    for block in blocks:
        if pieces := state.samples.get(block.unit):
            ppl, kld = summary(pieces)
            there, _ = summary(state.base[: len(pieces)])
            of_all = full / there.value  # of the full model, on all windows and on those
            block = replace(
                block,
                perplexity=ppl.value * of_all,
                perplexity_error=ppl.error * of_all,
                kld=kld.mean,
                kld_error=kld.error,
                n_scored=kld.n_tokens,
            )
        yield replace(block, refused=state.refused.get(block.unit))


def with_step(score: Score, state: Sweep) -> Score:
    """Return the score with one more step, of what went last."""
    ppl, kld = summary(state.base)
    last = state.out[-1]
    step = Step(
        block=block_of(last),
        perplexity=ppl.value,
        perplexity_error=ppl.error,
        kld=kld.mean,
        kld_error=kld.error,
        top1=kld.top1,
        n_scored=kld.n_tokens,
        bytes=int(sizes.weights(score).of(state.out)),
        half="" if isinstance(last, int) else last[1],
    )
    return replace(score, path=[*score.path[: len(state.out) - 1], step])
