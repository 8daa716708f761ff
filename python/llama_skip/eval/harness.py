"""The model that lm-eval's tasks run on: `Llama`, with any plan."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from llama_skip.files.identity import identify
from llama_skip.llama.llama import Llama
from llama_skip.measure import perplexity
from llama_skip.openai import chat
from llama_skip.plan.file import plan_argument
from llama_skip.progress import progress

try:
    _model: Any = import_module("lm_eval.api.model")
    _registry: Any = import_module("lm_eval.api.registry")
    _utils: Any = import_module("lm_eval.utils")
except ModuleNotFoundError as err:
    raise ImportError("lm-eval is not installed: pip install 'llama-skip[lm-eval]'") from err

GENERATED = 256  # tokens, where a task does not say
LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SAMPLING = {"top_p": "top_p", "top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repeat_penalty"}
Pair = tuple[tuple[str, str], list[int], list[int]]


class HarnessModel(_model.TemplateLM):  # type: ignore[misc]
    """A model of lm-eval: `Llama`, one sequence at a time."""

    def __init__(
        self,
        model: str,
        skip_layers: str | int | None = None,
        skip_scale: str | float | None = None,
        plan: str | None = None,
        n_ctx: int = 2048,
        batch_size: object = None,
        max_batch_size: object = None,
        device: object = None,
        **options: Any,
    ) -> None:
        """Load a model.

        Args:
            model: the GGUF file.
            skip_layers, skip_scale: as for `Llama`; items may be separated by semicolons too.
            plan: a plan file instead.
            n_ctx: tokens of context and continuation together at most.
            batch_size, max_batch_size, device: what lm-eval gives every model; not used.
            options: further arguments of `Llama`.

        Raises:
            ValueError: a plan and a set, a plan of another model, or a bad set.
        """
        super().__init__()
        if plan is not None:
            if skip_layers is not None or skip_scale is not None:
                raise ValueError("plan brings its own skip_layers and skip_scale")
            _, skip_layers = plan_argument(plan, identify(model), partial(print, file=sys.stderr))
        elif skip_layers is not None:
            skip_layers = str(skip_layers).replace(";", ",")
        self.max_length = n_ctx
        self.llm = Llama(
            model,
            skip_layers=skip_layers,
            skip_scale=skip_scale.replace(";", ",") if isinstance(skip_scale, str) else skip_scale,
            n_ctx=n_ctx,
            **{"n_gpu_layers": -1, "flash_attn": None, "verbose": False, **options},
        )

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.llm.token_eos()

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context."""
        bos = self.llm.token_bos()
        return bos if bos >= 0 else self.llm.token_eos()

    @property
    def tokenizer_name(self) -> str:
        """What caches of requests are told apart by."""
        return f"{identify(self.llm.model_path).model_id}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the model's own template."""
        return self.llm.metadata.get("tokenizer.chat_template", "")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return messages as a prompt, by the model's own template."""
        if not add_generation_prompt:
            raise ValueError("llama-skip cannot go on with an answer that has begun")
        request = chat.request_json(
            chat_history,
            functions=None,
            function_call=None,
            tools=None,
            tool_choice=None,
            response_format=None,
            grammar=None,
            template_options=None,
            reasoning_format="none",
        )
        return chat.apply(self.llm._chat_templates(), request).prompt.decode()

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Return the tokens of a text, begun with BOS where the model wants it and the text has none."""
        tokens = self.llm.tokenize(string.encode(), add_bos=False, special=True)
        wanted = self.llm.adds_bos and add_special_tokens is not False
        bos = [self.llm.token_bos()] if wanted and tokens[:1] != [self.llm.token_bos()] else []
        return bos + tokens

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **_: object
    ) -> list[tuple[float, bool]]:
        found, held = [], None
        with progress(len(requests), shown=not disable_tqdm) as bar:
            bar.say("log-likelihood")
            for texts, context, continuation in requests:
                tokens = (context + continuation)[-(self.max_length + 1) :]
                targets = tokens[-len(continuation) :][-(len(tokens) - 1) :]
                if held is None or held[0] != (tokens[:-1], len(targets)):
                    # answers of one token, as A to D, have the same logits
                    first = len(tokens) - 1 - len(targets)
                    held = (tokens[:-1], len(targets)), self.llm.logits(tokens[:-1], first=first)
                logits = held[1]
                total = -float(perplexity.surprisal(logits, targets).sum())
                is_greedy = bool((logits.argmax(axis=1) == targets).all())
                found.append((total, is_greedy))
                if texts is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, found[-1])
                bar.step()
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return log p of each text, every token predicted once, in windows of max_length."""
        found = []
        for request in requests:
            (text,) = request.args
            windows = _utils.get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [(None, *_utils.make_disjoint_window(window)) for window in windows]
            total = sum(value for value, _ in self._loglikelihood_tokens(pairs, disable_tqdm=True))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            found.append(total)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes after each context, up to a stop text."""
        found = []
        with progress(len(requests), shown=not disable_tqdm) as bar:
            bar.say("writing")
            for context, wanted in (request.args for request in requests):
                options = completion_options(wanted)
                n_most = self.max_length - options["max_tokens"]
                if n_most < 1:
                    raise ValueError(
                        f"n_ctx={self.max_length} has no room for {options['max_tokens']} tokens"
                    )
                result: Any = self.llm.create_completion(self.tok_encode(context)[-n_most:], **options)
                found.append(result["choices"][0]["text"])
                self.cache_hook.add_partial("generate_until", (context, wanted), found[-1])
                bar.step()
        return found


def completion_options(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's generation arguments as those of `Llama.create_completion`.

    Raises:
        ValueError: an argument without a counterpart.
    """
    rest = dict(wanted)
    lengths = [rest.pop(name, None) for name in LENGTH_NAMES]
    until = rest.pop("until", None) or []
    temperature = float(rest.pop("temperature", 0.0) or 0.0)
    samples = rest.pop("do_sample", temperature > 0)
    options: dict[str, Any] = {
        "max_tokens": next((int(n) for n in lengths if n is not None), GENERATED),
        "stop": [until] if isinstance(until, str) else list(until),
        "temperature": (temperature or 1.0) if samples else 0.0,
        # what a task does not ask for is off, as in transformers
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
    }
    for name in SAMPLING.keys() & rest.keys():
        options[SAMPLING[name]] = rest.pop(name)
    if rest:
        raise ValueError(f"generation arguments that llama-skip does not have: {', '.join(sorted(rest))}")
    return options


_registry.register_model("llama-skip")(HarnessModel)
