"""The class Llama: llama-cpp-python's, with blocks left out."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from llama_skip import _core, completion, params, skipset
from llama_skip.completion import Request, prompt_tokens, room
from llama_skip.loaded import DEFAULT_SEED, DeviceMemory, LoadedModel
from llama_skip.results import Completion, CompletionChunk
from llama_skip.sampling import Sampling
from llama_skip.text import stop_sequences

__all__ = ["DeviceMemory", "Llama"]


class Llama(LoadedModel):
    """A GGUF model with chosen blocks left out, with llama-cpp-python's names, defaults and results.

    >>> llm = Llama("model.gguf", skip_layers="10-20", n_ctx=2048)
    >>> llm("Once upon a time,", max_tokens=32)["choices"][0]["text"]

    Methods may be called from several threads and wait for each other. A stream, or generate(), that is
    resumed after something else was evaluated raises RuntimeError.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        skip_layers: skipset.Layers | None = None,
        skip_scale: skipset.Scale | None = None,
        n_gpu_layers: int = 0,
        split_mode: int = 1,
        main_gpu: int = 0,
        tensor_split: Sequence[float] | None = None,
        devices: str | Sequence[str] | None = None,
        rpc_servers: str | Sequence[str] | None = None,
        vocab_only: bool = False,
        use_mmap: bool = True,
        use_mlock: bool = False,
        kv_overrides: Mapping[str, bool | int | float | str] | None = None,
        progress: Callable[[float], bool | None] | None = None,
        seed: int = DEFAULT_SEED,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        rope_scaling_type: int | None = None,
        pooling_type: int | None = None,
        attention_type: int | None = None,
        rope_freq_base: float = 0.0,
        rope_freq_scale: float = 0.0,
        yarn_ext_factor: float = -1.0,
        yarn_attn_factor: float = 1.0,
        yarn_beta_fast: float = 32.0,
        yarn_beta_slow: float = 1.0,
        yarn_orig_ctx: int = 0,
        offload_kqv: bool = True,
        flash_attn: bool | None = False,
        op_offload: bool | None = None,
        swa_full: bool | None = None,
        no_perf: bool = False,
        last_n_tokens_size: int = 64,
        type_k: int | None = None,
        type_v: int | None = None,
        verbose: bool = True,
    ) -> None:
        """Load a model.

        Args:
            model_path: the GGUF file, the first one of a split model.
            skip_layers: the blocks to leave out, in the file's numbering: a text as for `--skip-layers`
                ("13-14,25"), or ints. Their weights are never read, and they get no KV cache.
            skip_scale: what the residual stream is multiplied by once per gap: one factor for every gap, a
                text as for `--skip-scale`, or the factor by the first block of its gap.
            n_gpu_layers: how many kept blocks go to devices, the last ones first, and one more for the
                output; -1: all.
            split_mode, main_gpu, tensor_split: how devices share the model, as in llama_model_params.
            devices: names of the devices to use (`llama-skip doctor` lists them); None: llama.cpp's choice.
            rpc_servers: "HOST:PORT" of ggml-rpc-server processes whose devices to use before the local ones.
            vocab_only: load the vocabulary alone.
            use_mmap, use_mlock: map the file; keep it in memory.
            kv_overrides: metadata to use instead of the file's.
            progress: called with the loaded fraction, 0 to 1; a false result that is not None cancels.
            seed: where completions without a seed of their own begin.
            n_ctx: tokens the context holds; 0: as many as the model was trained with.
            n_batch, n_ubatch: tokens given to llama.cpp, and computed, at once.
            n_threads, n_threads_batch: threads for single tokens (default: half of the processors) and
            batches (all). rope_scaling_type, pooling_type, attention_type, rope_freq_base, rope_freq_scale,
            yarn_ext_factor,
                yarn_attn_factor, yarn_beta_fast, yarn_beta_slow, yarn_orig_ctx, offload_kqv, op_offload,
                swa_full,
                no_perf: as in llama_context_params.
            flash_attn: whether to use flash attention; None: where the devices support it.
            type_k, type_v: ggml types of the KV cache, as ints; None: F16.
            last_n_tokens_size: generated tokens that the penalties look back at.
            verbose: show llama.cpp's log on stderr.

        Raises:
            ValueError: an argument that this model, or llama.cpp, does not allow; a bad set before anything
                is loaded.
            FileNotFoundError: no such file.
            llama_skip.ModelLoadError: llama.cpp cannot load the file.
            RuntimeError: llama.cpp cannot create the context.
        """
        mp = _core.ModelParams()
        mp.skip_layers = skipset.layers_text(skip_layers, "skip_layers")
        mp.skip_scale = skipset.scale_text(skip_scale, "skip_scale")
        params.add_overrides(mp, kv_overrides)
        mp.devices = None if devices is None else params.names(devices, "devices")
        mp.rpc_servers = [] if rpc_servers is None else params.rpc_servers(rpc_servers)
        mp.progress = progress
        params.assign(
            mp,
            n_gpu_layers=n_gpu_layers,
            split_mode=split_mode,
            main_gpu=main_gpu,
            tensor_split=tensor_split,
            vocab_only=vocab_only,
            load_mode=params.load_mode(use_mmap, use_mlock),
            verbose=verbose,
        )
        params.check_sizes(n_ctx=n_ctx, n_batch=n_batch, n_ubatch=n_ubatch)
        n_single, n_all = params.thread_counts(n_threads, n_threads_batch)
        cp = _core.ContextParams()
        params.assign(
            cp,
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_ubatch=n_ubatch,
            n_threads=n_single,
            n_threads_batch=n_all,
            rope_scaling_type=rope_scaling_type,
            pooling_type=pooling_type,
            attention_type=attention_type,
            rope_freq_base=rope_freq_base,
            rope_freq_scale=rope_freq_scale,
            yarn_ext_factor=yarn_ext_factor,
            yarn_attn_factor=yarn_attn_factor,
            yarn_beta_fast=yarn_beta_fast,
            yarn_beta_slow=yarn_beta_slow,
            yarn_orig_ctx=yarn_orig_ctx,
            offload_kqv=offload_kqv,
            flash_attn_type=-1 if flash_attn is None else int(flash_attn),
            op_offload=op_offload,
            swa_full=swa_full,
            no_perf=no_perf,
            type_k=type_k,
            type_v=type_v,
        )
        self.verbose = verbose
        self.last_n_tokens_size = last_n_tokens_size
        super().__init__(os.fspath(model_path), mp, None if vocab_only else cp, seed=seed)

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
        grammar: str | None = None,
    ) -> Iterator[int]:
        """Yield tokens that follow `tokens`, without end and past the end of the text.

        What `tokens` share with the tokens in the context is not evaluated again, unless under another mask.

        Args:
            tokens: the prompt.
            top_k, top_p, min_p, typical_p, temp, repeat_penalty, frequency_penalty, presence_penalty,
                mirostat_mode, mirostat_tau, mirostat_eta, grammar: as in create_completion().

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
            grammar=grammar,
        )
        sampler = sampling.sampler(self._m, seed=self._seed, last_n_tokens_size=self.last_n_tokens_size)
        return self._history.generate(prompt_tokens(self._m, tokens), sampler)

    def create_completion(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        grammar: str | None = None,
        logit_bias: Mapping[int, float] | None = None,
    ) -> Completion | Iterator[CompletionChunk]:
        """Continue a text.

        What the prompt shares with the tokens in the context is not evaluated again, unless under another
        mask.

        Args:
            prompt: a text, or tokens, which are taken as they are.
            max_tokens: most tokens to generate; None or below 1: as many as the context holds.
            temperature: of the distribution; 0 takes the most probable token, below 0 the filters do not
                apply.
            top_p, min_p, typical_p, top_k: filters of llama.cpp's sampler chain, in llama-cpp-python's order.
            echo: begin the text with the prompt.
            stop: texts at which to end, and which are not returned.
            frequency_penalty, presence_penalty, repeat_penalty: on the last generated tokens.
            stream: return an iterator over pieces of text, the last of which has the finish_reason.
            seed: of the sampler; None: the next one of this object's own.
            mirostat_mode: 0 for none, 1 or 2; with mirostat_tau, its target in nats, and mirostat_eta, its
                rate.
            model: the name in the result, by default the path.
            grammar: GBNF that the text has to follow.
            logit_bias: added to the logits of tokens.

        Returns:
            OpenAI's `text_completion`, or an iterator over its chunks. finish_reason is "stop" at the end of
            the text or at a stop text, else "length".

        Raises:
            ValueError: an empty prompt, one that does not fit into the context, or a bad sampling option.
            RuntimeError: evaluation failed, or, while streaming, something else was evaluated in between.
        """
        tokens = prompt_tokens(self._m, prompt)
        n_max = room(len(tokens), max_tokens, self.n_ctx())
        if seed is None:
            # as there: runs repeat from one process to the next, calls within a process differ
            seed = random.Random(self._seed).randint(0, 2**32)
        self.set_seed(seed)
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
            grammar=grammar,
            logit_bias=logit_bias,
        )
        request = Request(
            model=self._m,
            history=self._history,
            sampler=sampling.sampler(self._m, seed=seed, last_n_tokens_size=self.last_n_tokens_size),
            prompt=tokens,
            n_max=n_max,
            stop=stop_sequences(stop),
            echo=self._echo(prompt) if echo else "",
            name=model or self.model_path,
        )
        return completion.stream(request) if stream else completion.whole(request)

    __call__ = create_completion

    def _echo(self, prompt: str | Sequence[int]) -> str:
        return prompt if isinstance(prompt, str) else self.detokenize(prompt).decode("utf-8", "ignore")
