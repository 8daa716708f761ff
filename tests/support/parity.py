"""The same calls on llama_cpp.Llama and llama_skip.Llama, and what their results differ in.

Runs in a Worker for llama_cpp, with the unpatched library, so nothing here imports llama_skip.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

THREADS = {"n_threads": 1, "n_threads_batch": 1, "verbose": False}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"n_ctx": 256},
    "all": {"n_ctx": 256, "logits_all": True},
    "last_8": {"n_ctx": 256, "last_n_tokens_size": 8},
    "tokens": {"n_ctx": 256, "n_batch": 32, "embedding": True, "pooling_type": 0},
    "mean": {"n_ctx": 256, "n_batch": 32, "embedding": True, "pooling_type": 1},
}
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Call(NamedTuple):
    """One call of a Llama with the options of that name, on an empty context."""

    options: str
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Raised(NamedTuple):
    """An exception that a call raised."""

    kind: str
    text: str


def call(options: str, method: str, *args: Any, **kwargs: Any) -> Call:
    return Call(options, method, args, kwargs)


class Force:
    """A logits processor that lets only given tokens follow the prompt."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.n_prompt: int | None = None

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if self.n_prompt is None:
            self.n_prompt = len(ids)
        forced = np.full_like(scores, -1000)
        forced[self.tokens[min(len(ids) - self.n_prompt, len(self.tokens) - 1)]] = 1000
        return forced


class Without:
    """A logits processor that takes tokens out."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def __repr__(self) -> str:  # in the name of a test
        return f"Without({self.tokens})"

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        changed = np.copy(scores)
        changed[self.tokens] = -1000
        return changed


class AtLength:
    """A stopping criterion: this many tokens."""

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens

    def __call__(self, ids: np.ndarray, logits: np.ndarray) -> bool:
        return len(ids) >= self.n_tokens


class Side:
    """One of the two packages with SmolLM2; models are made once."""

    def __init__(self, package: str, model: str) -> None:
        self.lib = importlib.import_module(package)
        self.model = model
        self._made: dict[str, Any] = {}

    def make(self, **options: Any) -> Any:
        return self.lib.Llama(self.model, **{**THREADS, **options})

    def llm(self, options: str) -> Any:
        if options not in self._made:
            self._made[options] = self.make(**OPTIONS[options])
        return self._made[options]

    def run(self, call: Call) -> Any:
        """Return the result, a list of what an iterator yields, or what was raised; and the tokens held."""
        llm = self.llm(call.options)
        llm.reset()
        try:
            result = getattr(llm, call.method)(*call.args, **self._own_types(call.kwargs))
            result = list(result) if isinstance(result, Iterator) else result
        except Exception as err:
            return Raised(type(err).__name__, str(err))
        return {"result": result, "held": [int(token) for token in llm.eval_tokens]}

    def _own_types(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Wrap what callers of llama_cpp wrap."""
        wraps: dict[str, Callable[[Any], Any]] = {
            "grammar": lambda text: self.lib.LlamaGrammar.from_string(text, verbose=False),
            "logits_processor": self.lib.LogitsProcessorList,
            "stopping_criteria": self.lib.StoppingCriteriaList,
        }
        return {name: wraps[name](value) if name in wraps else value for name, value in kwargs.items()}

    def close(self) -> None:
        for llm in self._made.values():
            llm.close()


_theirs: Side | None = None


def on_theirs(library: Any, package: str, model: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function with the Side of `package`'s llama_cpp, in the process that holds `library` alone."""
    global _theirs
    if package not in sys.path:
        sys.path.insert(0, package)
    os.environ["LLAMA_CPP_LIB_PATH"] = str(library.folder)
    _theirs = _theirs or Side("llama_cpp", model)
    return function(_theirs, *args)


def differences(theirs: Any, ours: Any, *, rel: float = 1e-5, at: str = "") -> list[str]:
    """Return where two results differ in type, keys, length or value; ids and times by their form alone.

    The tolerance is for sums in another order: log-probabilities come from equal float32 logits.
    """
    if type(theirs) is not type(ours):
        return [f"{at}: {type(theirs).__name__} {theirs!r:.80} and {type(ours).__name__} {ours!r:.80}"]
    if isinstance(theirs, dict):
        found = [] if set(theirs) == set(ours) else [f"{at}: keys {list(theirs)} and {list(ours)}"]
        both = [key for key in theirs if key in ours]
        return [*found, *(d for k in both for d in differences(theirs[k], ours[k], rel=rel, at=f"{at}.{k}"))]
    if isinstance(theirs, list | tuple):
        if len(theirs) != len(ours):
            return [f"{at}: {len(theirs)} and {len(ours)} items: {theirs!r:.300} and {ours!r:.300}"]
        pairs = enumerate(zip(theirs, ours, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, rel=rel, at=f"{at}[{i}]")]
    if isinstance(theirs, np.ndarray):
        same = theirs.shape == ours.shape and theirs.dtype == ours.dtype and np.array_equal(theirs, ours)
        return [] if same else [f"{at}: arrays {theirs.shape} {theirs.dtype}, {ours.shape} {ours.dtype}"]
    if isinstance(theirs, float):
        return [] if math.isclose(theirs, ours, rel_tol=rel, abs_tol=rel) else [f"{at}: {theirs} and {ours}"]
    if at.endswith(".created"):
        return []
    if at.endswith(".id"):
        theirs, ours = UUID.sub("UUID", theirs), UUID.sub("UUID", ours)
    return [] if theirs == ours else [f"{at}: {theirs!r:.300} and {ours!r:.300}"]


def numbers(side: Side) -> dict[str, Any]:
    """What a model says about itself."""
    llm = side.llm("plain")
    methods = ("n_ctx", "n_vocab", "n_embd", "token_bos", "token_eos", "token_nl", "pooling_type")
    return {"metadata": llm.metadata, **{name: getattr(llm, name)() for name in methods}}


def evaluated(side: Side, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The logits of tokens that were evaluated in two parts, and their log-probabilities."""
    llm = side.llm("all")
    llm.reset()
    llm.eval(tokens[:7])
    llm.eval(tokens[7:])
    scores = llm.scores[: llm.n_tokens]
    return scores.copy(), side.lib.Llama.logits_to_logprobs(scores)


def generated(side: Side, tokens: list[int], kwargs: dict[str, Any]) -> list[int]:
    """Six tokens of generate(), and those held."""
    llm = side.llm("plain")
    llm.reset()
    stream = llm.generate(tokens, **kwargs)
    found = [int(next(stream)) for _ in range(6)]
    stream.close()
    return [*found, *llm.eval_tokens]


def sent(side: Side, tokens: list[int]) -> list[int]:
    """The tokens held after two were sent to generate()."""
    llm = side.llm("plain")
    llm.reset()
    stream = llm.generate(tokens, temp=0.0)
    next(stream)
    stream.send([504, 28])
    return list(llm.eval_tokens)


def sampled(
    side: Side, tokens: list[int], seeds: list[int], kwargs: dict[str, Any], n_before: int = 0
) -> list[int]:
    """Tokens of sample() for seeds, of a new model that may have generated some greedily before."""
    llm = side.make(n_ctx=64)
    if n_before:
        llm.create_completion("Hi", max_tokens=n_before, temperature=0.0)
        llm.reset()
    llm.eval(tokens)
    found = []
    for seed in seeds:
        llm.set_seed(seed)
        found.append(int(llm.sample(**kwargs)))
    llm.close()
    return found


def reused(side: Side) -> list[Any]:
    """Prompts that share their beginning with what is held: longer, shorter, another, the same."""
    llm = side.llm("plain")
    llm.reset()
    start = "The first three planets of the solar system are"
    prompts = [start, start + " Mercury, Venus and", start[:20], "Water", "Water"]
    texts = [llm(p, max_tokens=5, temperature=0.0)["choices"][0]["text"] for p in prompts]
    return [*texts, llm.n_tokens, list(llm.eval_tokens)]


def restored(side: Side, tokens: list[int]) -> list[Any]:
    """What follows a state that was saved, after other work."""
    llm = side.llm("plain")
    llm.reset()
    llm.set_seed(11)
    llm.eval(tokens)
    state = llm.save_state()
    llm.reset()
    llm.create_completion("Something else", max_tokens=3, seed=1)
    llm.load_state(state)
    held = [state.n_tokens, llm.n_tokens, list(llm.eval_tokens), state.seed, type(state.llama_state).__name__]
    again = llm.create_completion([*tokens, 28], max_tokens=6)
    return [*held, state.llama_state_size == len(state.llama_state), again]


def interleaved(side: Side) -> str:
    """The second piece of a stream after another completion: the text that was held, or what was raised."""
    llm = side.llm("plain")
    llm.reset()
    stream = llm.create_completion("Once upon a time", max_tokens=4, temperature=0.0, stream=True)
    next(stream)
    llm.create_completion("The capital of France is", max_tokens=1, temperature=0.0)
    try:
        next(stream)
        return str(llm.detokenize(list(llm.eval_tokens)).decode())
    except RuntimeError as err:
        return f"RuntimeError: {err}"


def without_seed(side: Side, seed: int) -> list[str]:
    """Two completions without a seed of their own, of a model with this one."""
    llm = side.make(n_ctx=64, seed=seed)
    kwargs = {"max_tokens": 6, "temperature": 1.5}
    texts = [llm.create_completion("Once upon", **kwargs)["choices"][0]["text"] for _ in range(2)]
    llm.close()
    return texts


def held_arrays(side: Side, tokens: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of input_ids and scores after evaluating tokens."""
    llm = side.llm("plain")
    llm.reset()
    llm.eval(tokens)
    return llm.input_ids.shape, llm.scores.shape


def construction(side: Side, path: str | None, options: dict[str, Any]) -> Raised | None:
    """What making a model raises."""
    try:
        side.lib.Llama(path or side.model, **{**THREADS, "n_ctx": 64, **options}).close()
    except Exception as err:
        return Raised(type(err).__name__, str(err))
    return None


def pickled(side: Side) -> str:
    """Whether a model can be pickled, or what is raised."""
    try:
        pickle.dumps(side.llm("plain"))
    except Exception as err:
        return type(err).__name__
    return "bytes"


def signatures(side: Side) -> dict[str, dict[str, str]]:
    """The public methods, and their arguments with defaults."""
    found = {}
    for name in dir(side.lib.Llama):
        member = getattr(side.lib.Llama, name)
        if name in ("__init__", "__call__") or not name.startswith("_"):
            try:
                parameters = inspect.signature(member).parameters.values() if callable(member) else []
            except ValueError:
                parameters = []
            found[name] = {p.name: repr(p.default) for p in parameters if p.kind != p.VAR_KEYWORD}
    return found
