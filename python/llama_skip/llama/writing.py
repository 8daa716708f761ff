"""The writing of text: tokens, completions and chat completions."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from llama_skip import _core, skipset
from llama_skip.errors import ArgumentError
from llama_skip.model.depth import IN_FORCE, Depth
from llama_skip.model.loaded import LoadedModel
from llama_skip.model.probe import probe
from llama_skip.model.replaced import ONE_TOKEN, SAMPLING, replaced
from llama_skip.model.sampling import Chooser, LogitsProcessor, Sampling, StoppingCriterion
from llama_skip.openai import chat, completion
from llama_skip.openai.completion import Request, prompt_tokens, room
from llama_skip.openai.pieces import stop_sequences
from llama_skip.openai.results import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk

Json = Mapping[str, Any]


class WritingModel(LoadedModel):
    """What `Llama` is built on: a loaded model that generates."""

    last_n_tokens_size = 64
    _format = chat.Format("", is_jinja=True)
    _templates: _core.ChatTemplates | None = None

    @replaced(ONE_TOKEN)
    def sample(
        self,
        *,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        logits_processor: Iterable[LogitsProcessor] | None = None,
        grammar: str | None = None,
    ) -> int:
        """Return a token by the logits of the last token that was evaluated; it is not evaluated itself.

        Args:
            top_k, top_p, min_p, typical_p, temp, mirostat_mode, mirostat_tau, mirostat_eta: as in
                create_completion().
            repeat_penalty, frequency_penalty, presence_penalty, logits_processor, grammar: the same.

        Raises:
            ValueError: as by create_completion().
            RuntimeError: nothing was evaluated.
        """
        sampling = Sampling(
            temperature=temp,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            logits_processor=logits_processor,
            grammar=grammar,
        )
        token = self._history.choose(self._chooser(sampling, self._seed).choose)
        assert token is not None  # only stopping criteria give none
        return token

    @replaced(SAMPLING)
    def generate(
        self,
        tokens: Sequence[int],
        *,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        logits_processor: Iterable[LogitsProcessor] | None = None,
        grammar: str | None = None,
        reset: bool = True,
        stopping_criteria: Iterable[StoppingCriterion] | None = None,
        skip_layers: skipset.Layers | None = None,
        skip_prompt: bool = False,
    ) -> Generator[int, Sequence[int] | None, None]:
        """Yield tokens that follow `tokens`, past the end of the text.

        What `tokens` share with the tokens in the context is not evaluated again, unless under another mask.
        Tokens that are sent to the generator are evaluated after the one it yielded last.

        Args:
            tokens: the prompt.
            top_k, top_p, min_p, typical_p, temp, mirostat_mode, mirostat_tau, mirostat_eta: as in
                create_completion().
            repeat_penalty, frequency_penalty, presence_penalty, logits_processor, grammar: the same.
            stopping_criteria: the same.
            skip_layers, skip_prompt: the same.
            reset: let `tokens` begin the context; if false they follow what it holds.

        Raises:
            ValueError: as by create_completion().
            RuntimeError: the context is full, or something else was evaluated between two tokens.
        """
        sampling = Sampling(
            temperature=temp,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            logits_processor=logits_processor,
            grammar=grammar,
        )
        chooser = self._chooser(sampling, self._seed, stopping_criteria=stopping_criteria)
        prompt = prompt_tokens(self._m, tokens)
        if not reset:
            prompt = [*self._history.tokens, *prompt]
        return self._history.generate(prompt, chooser.choose, self._depth(skip_layers, skip_prompt))

    @replaced(SAMPLING)
    def create_completion(
        self,
        prompt: str | Sequence[int],
        *,
        suffix: str | None = None,
        max_tokens: int | None = 16,
        logprobs: int | None = None,
        echo: bool = False,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        stopping_criteria: Iterable[StoppingCriterion] | None = None,
        logits_processor: Iterable[LogitsProcessor] | None = None,
        grammar: str | None = None,
        logit_bias: Mapping[int, float] | None = None,
        skip_layers: skipset.Layers | None = None,
        skip_prompt: bool = False,
    ) -> Completion | Iterator[CompletionChunk]:
        """Continue a text.

        What the prompt shares with the tokens in the context is not evaluated again, unless under another
        mask.

        Args:
            prompt: a text, or tokens, which are taken as they are.
            suffix: the text that follows what is to be written, for a model that can fill in.
            max_tokens: most tokens to generate; None or below 1: as many as the context holds.
            logprobs: report the log-probability of each token, and this many of the most probable ones,
                before any sampling option.
            echo: begin the text with the prompt; with logprobs, report its tokens too.
            temperature: of the distribution; 0 takes the most probable token, below 0 the filters do not
                apply.
            top_p, min_p, typical_p, top_k: filters of llama.cpp's sampler chain, in llama-cpp-python's order.
            stream: return an iterator over pieces of text, the last of which has the finish_reason.
            stop: texts at which to end, and which are not returned.
            seed: of the sampler; None: the next one of this object's own.
            frequency_penalty, presence_penalty, repeat_penalty: on the last generated tokens.
            mirostat_mode: 0 for none, 1 or 2; with mirostat_tau, its target in nats, and mirostat_eta, its
                rate.
            model: the name in the result, by default the path.
            stopping_criteria: called with all tokens and their last logits [n_vocab]; one that is true ends
                the text.
            logits_processor: called with all tokens and their last logits [n_vocab], one after the other;
                each returns what the next one, and at last the sampler, sees instead.
            grammar: GBNF that the text has to follow.
            logit_bias: added to the logits of tokens.
            skip_layers: what to leave out of this answer, beside what is left out anyway: the name of a
                tier, or a set in any form that set_mask() takes. The prompt is evaluated as deep as without
                it. What was generated at less depth is evaluated anew when it comes back in a later prompt,
                unless only feed-forwards were left out: then the context keeps it. The mask in force stays.
            skip_prompt: leave it out of the prompt too.

        Returns:
            OpenAI's `text_completion`, or an iterator over its chunks. finish_reason is "stop" at the end of
            the text or at a stop text, else "length".

        Raises:
            ValueError: an empty prompt, one that does not fit into the context, a bad sampling option, a
                suffix for a model that cannot fill in, an unknown tier, or a set that set_mask() refuses.
            RuntimeError: evaluation failed, or, while streaming, something else was evaluated in between.
        """
        tokens = prompt_tokens(self._m, prompt, suffix)
        sampling = Sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            logits_processor=logits_processor,
            grammar=grammar,
            logit_bias=logit_bias,
        )
        text = prompt if isinstance(prompt, str) else self.detokenize(prompt).decode("utf-8", "ignore")
        request = self._request(
            sampling,
            tokens,
            max_tokens,
            seed,
            stop,
            model,
            n_top=logprobs,
            depth=self._depth(skip_layers, skip_prompt),
            stopping_criteria=stopping_criteria,
        )._replace(echo=text if echo else "", n_echo=len(text))
        return completion.stream(request) if stream else completion.whole(request)

    __call__ = create_completion

    @replaced(SAMPLING)
    def create_chat_completion(
        self,
        messages: Sequence[Json],
        *,
        functions: Sequence[Json] | None = None,
        function_call: str | Json | None = None,
        tools: Sequence[Json] | None = None,
        tool_choice: str | Json | None = None,
        response_format: Json | None = None,
        max_tokens: int | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        template_options: Json | None = None,
        reasoning_format: str = "none",
        temperature: float = 0.2,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        logits_processor: Iterable[LogitsProcessor] | None = None,
        grammar: str | None = None,
        logit_bias: Mapping[int, float] | None = None,
        skip_layers: skipset.Layers | None = None,
        skip_prompt: bool = False,
    ) -> ChatCompletion | Iterator[ChatCompletionChunk]:
        """Answer messages, with the model's chat template or that of the class.

        Args:
            messages: OpenAI's: "role" and "content", and tool calls and their results.
            functions, function_call: the same as tools and tool_choice, in OpenAI's older form.
            tools: functions that the model may call, as OpenAI's JSON; calls are in the answer's tool_calls.
            tool_choice: "auto", "none", "required", or the one tool to call.
            response_format: {"type": "json_object"}, also with a "schema", or OpenAI's "json_schema".
            max_tokens: most tokens to generate; None or below 1: as many as the context holds.
            logprobs, top_logprobs: report the log-probability of each token, and this many of the most
                probable ones.
            template_options: variables of the template, such as {"enable_thinking": False}.
            reasoning_format: llama.cpp's: "none" leaves the model's thoughts in the content, "deepseek" puts
                them into reasoning_content.
            temperature, top_p, min_p, typical_p, top_k, stream, stop, seed, model: as in create_completion().
            frequency_penalty, presence_penalty, repeat_penalty, logits_processor, logit_bias: the same.
            mirostat_mode, mirostat_tau, mirostat_eta, grammar: the same.
            skip_layers, skip_prompt: the same.

        Returns:
            OpenAI's `chat.completion`, or an iterator over its chunks. finish_reason is "tool_calls" where
            the model calls tools, else as in create_completion().

        Raises:
            ValueError: as by create_completion(), or messages, tools, a schema or options that llama.cpp or
                the template does not take.
            RuntimeError: as by create_completion().
        """
        asked = chat.request_json(
            messages,
            functions=functions,
            function_call=function_call,
            tools=tools,
            tool_choice=tool_choice,
            response_format=response_format,
            grammar=grammar,
            template_options=template_options,
            reasoning_format=reasoning_format,
        )
        templates = self._chat_templates()
        prompt = chat.apply(templates, asked)
        tool = chat.forced_tool(asked, prompt)
        if tool is not None:
            prompt = chat.apply(templates, chat.arguments_request(asked))
        sampling = Sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            logits_processor=logits_processor,
            grammar=grammar,
            logit_bias=logit_bias,
            chat=prompt,
        )
        tokens = self._m.tokenize(prompt.prompt, True, True)
        stops = [stop] if isinstance(stop, str) else list(stop or [])
        n_top = (top_logprobs or 0) if logprobs else None
        request = self._request(
            sampling,
            tokens,
            max_tokens,
            seed,
            [*stops, *prompt.stop],
            model,
            n_top=n_top,
            depth=self._depth(skip_layers, skip_prompt),
        )._replace(preserved=frozenset(prompt.preserved))
        answer = chat.stream if stream else chat.whole
        return answer(request, prompt, tool=tool, is_function=functions is not None)

    def probe(
        self,
        prompt: str | Sequence[int],
        tiers: str | Iterable[str] | None = None,
        n_tokens: int = 64,
    ) -> dict[str, float]:
        """Return how far each tier is from the depth in force on the end of a prompt.

        The last tokens of the prompt are evaluated once at the depth in force and once at each tier, behind
        the tokens before them at the depth in force, which the context holds afterwards. These are evaluated
        where it does not hold them already, and for each tier where the memory cannot go back to them: of a
        recurrent model, or one whose sliding window has moved on.

        Args:
            prompt: as for create_completion().
            tiers: names of tiers, or sets as texts; None: all of `tiers`.
            n_tokens: how many tokens of the prompt to look at; of a shorter one, all.

        Returns:
            The mean KL divergence of the tier's next-token distributions from those at the depth in force, in
            nats a token, by what `tiers` calls it.

        Raises:
            ValueError: as by create_completion() for prompt and skip_layers, n_tokens below 1, or NaN or
                infinity in the logits.
            RuntimeError: evaluation failed, or an encoder, which predicts no next token.
        """
        if n_tokens < 1:
            raise ArgumentError("n_tokens", f"{n_tokens} is too small, the least is 1")
        tokens = prompt_tokens(self._m, prompt)
        room(len(tokens), None, self.n_ctx())
        names = [tiers] if isinstance(tiers, str) else self._tiers if tiers is None else tiers
        return probe(self._history, tokens, {name: self._asked(name) for name in names}, n_tokens)

    def _depth(self, skip_layers: skipset.Layers | None, skip_prompt: bool) -> Depth:
        if skip_layers is None:
            return IN_FORCE
        mask = self._asked(skip_layers)
        return Depth(mask if skip_prompt else None, mask)

    def _chat_templates(self) -> _core.ChatTemplates:
        if self._templates is None:
            self._templates = _core.ChatTemplates(self._m, self._format.source, self._format.is_jinja)
        return self._templates

    def _chooser(
        self,
        sampling: Sampling,
        seed: int,
        *,
        stopping_criteria: Iterable[StoppingCriterion] | None = None,
        n_top: int | None = None,
    ) -> Chooser:
        return Chooser(
            sampling.sampler(self._m, seed=seed, last_n_tokens_size=self.last_n_tokens_size),
            processors=sampling.logits_processor,
            stopping_criteria=stopping_criteria,
            n_top=n_top,
        )

    def _request(
        self,
        sampling: Sampling,
        tokens: list[int],
        max_tokens: int | None,
        seed: int | None,
        stop: str | Sequence[str] | None,
        name: str | None,
        *,
        n_top: int | None,
        depth: Depth,
        stopping_criteria: Iterable[StoppingCriterion] | None = None,
    ) -> Request:
        n_max = room(len(tokens), max_tokens, self.n_ctx())
        if seed is None:
            # as there: runs repeat from one process to the next, calls within a process differ
            seed = random.Random(self._seed).randint(0, 2**32)
        self.set_seed(seed)
        return Request(
            model=self._m,
            history=self._history,
            chooser=self._chooser(sampling, seed, stopping_criteria=stopping_criteria, n_top=n_top),
            prompt=tokens,
            n_max=n_max,
            stop=stop_sequences(stop),
            name=name or self.model_path,
            n_top=n_top,
            depth=depth,
        )
