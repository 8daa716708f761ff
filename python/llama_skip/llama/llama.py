"""The class Llama: llama-cpp-python's, with blocks left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from llama_skip import _core, skipset
from llama_skip.llama import hub
from llama_skip.llama.writing import WritingModel
from llama_skip.model import params
from llama_skip.model.depth import tier_texts
from llama_skip.model.loaded import DEFAULT_SEED
from llama_skip.model.replaced import CONSTRUCTION, DOWNLOAD, EMBEDDING, replaced
from llama_skip.model.sampling import logits_to_logprobs
from llama_skip.openai import chat
from llama_skip.openai import embedding as embeddings
from llama_skip.openai.results import EmbeddingResponse

Self = TypeVar("Self", bound="Llama")


class Llama(WritingModel):
    """A GGUF model with chosen blocks left out, with llama-cpp-python's names, defaults and results.

    Methods may be called from several threads and wait for each other. A stream, or generate(), that is
    resumed after something else was evaluated raises RuntimeError.

    Examples:
        >>> llm = Llama("model.gguf", skip_layers="13-14", n_ctx=2048)
        >>> llm("Once upon a time,", max_tokens=32)["choices"][0]["text"]
    """

    logits_to_logprobs = staticmethod(logits_to_logprobs)

    @replaced(CONSTRUCTION)
    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        skip_layers: skipset.Layers | None = None,
        skip_scale: skipset.Scale | None = None,
        skip_untested: bool = False,
        tiers: Mapping[str, skipset.Layers] | None = None,
        disk_layers: skipset.Layers | None = None,
        disk_scale: skipset.Scale | None = None,
        disk_strict: bool = False,
        disk_idle: float = 0.0,
        n_gpu_layers: int = 0,
        split_mode: int = 1,
        main_gpu: int = 0,
        tensor_split: Sequence[float] | None = None,
        devices: str | Sequence[str] | None = None,
        rpc_servers: str | Sequence[str] | None = None,
        vocab_only: bool = False,
        use_mmap: bool = True,
        use_mlock: bool = False,
        repack: bool = True,
        kv_overrides: Mapping[str, bool | int | float | str] | None = None,
        progress: Callable[[float], bool | None] | None = None,
        dry_run: bool = False,
        seed: int = DEFAULT_SEED,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_parallel: int | None = None,
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
        logits_all: bool = False,
        embedding: bool = False,
        hidden_states: bool = False,
        offload_kqv: bool = True,
        flash_attn: bool | None = False,
        op_offload: bool | None = None,
        swa_full: bool | None = None,
        no_perf: bool = False,
        last_n_tokens_size: int = 64,
        lora_path: str | os.PathLike[str] | None = None,
        lora_scale: float = 1.0,
        chat_format: str | None = None,
        chat_template: str | None = None,
        type_k: int | None = None,
        type_v: int | None = None,
        log: Callable[[str, str], object] | None = None,
        verbose: bool = True,
    ) -> None:
        """Load a model.

        Args:
            model_path: the GGUF file, the first one of a split model.
            skip_layers: the blocks to leave out, in the file's numbering: a text as for `--skip-layers`
                ("13-14,25", "3:attn,7:ffn", "auto:25%", "@NAME", "@path/plan.json"); ints, and pairs
                (3, "attn") or (7, "ffn") for the attention or the feed-forward of a block alone; or
                {"attn": [3], "ffn": [7]}. Their weights are never read, and blocks without attention get no
                KV cache.
            skip_scale: what the residual stream is multiplied by once per gap: one factor for every gap, a
                text as for `--skip-scale`, or the factor by the first block of its gap.
            skip_untested: leave blocks out of architectures that were not tested for it too.
            tiers: depths that a completion can ask for: sets or plans, as for skip_layers, by names of 1 to
                64 letters, digits, ".", "_" and "-", such as {"fast": "auto:25%", "faster": "10-20"}.
            disk_layers: blocks that stay in the file, in the form of skip_layers without plans: mapped, run
                on the host, on no device.
            disk_scale: the output of a disk block is x + S * (f(x) - x): one S for all of them, a text as for
                `--disk-scale`, or S by the block; 1 is the block as it is, 0 leaves it out.
            disk_strict: hand back the memory of each disk block when it has run.
            disk_idle: hand back the memory of all disk blocks after so many seconds without work; 0: never.
            n_gpu_layers: how many kept blocks that are not on disk go to devices, the last ones first, and
                one more for the output; -1: all.
            split_mode, main_gpu, tensor_split: how devices share the model, as in llama_model_params.
            devices: names of the devices to use (`llama-skip doctor` lists them); None: llama.cpp's choice.
            rpc_servers: "HOST:PORT" of ggml-rpc-server processes whose devices to use before the local ones.
            vocab_only: load the vocabulary alone.
            use_mmap, use_mlock: map the file; keep it in memory.
            repack: let the CPU lay out weights anew for kernels that are faster, and round in another way.
            kv_overrides: metadata to use instead of the file's.
            progress: called with the loaded fraction, 0 to 1; a false result that is not None cancels.
            dry_run: allocate nothing; memory() says what would be allocated, and nothing can be evaluated.
            seed: where completions without a seed of their own begin.
            n_ctx: tokens the context holds; 0: as many as the model was trained with.
            n_batch, n_ubatch: tokens given to llama.cpp, and computed, at once.
            n_parallel: of a dry run: the memory of a llama-server with so many slots, which holds logits of
                one token a slot instead of n_batch.
            n_threads, n_threads_batch: threads for single tokens (default: half of the processors that
                this process may use) and batches (all of them).
            rope_scaling_type, pooling_type, attention_type, rope_freq_base, rope_freq_scale: as in
                llama_context_params.
            yarn_ext_factor, yarn_attn_factor, yarn_beta_fast, yarn_beta_slow, yarn_orig_ctx: the same.
            offload_kqv, op_offload, swa_full, no_perf: the same.
            logits_all: keep the logits of all tokens in `scores`.
            embedding: let embed() and create_embedding() work.
            hidden_states: let hidden_states() work.
            flash_attn: whether to use flash attention; None: where the devices support it.
            type_k, type_v: ggml types of the KV cache, as ints; None: F16.
            last_n_tokens_size: generated tokens that the penalties look back at.
            lora_path, lora_scale: a LoRA adapter, and its factor; its tensors of blocks left out are ignored.
            chat_format: the name of one of llama.cpp's own chat templates instead of the model's.
            chat_template: a Jinja chat template instead of the model's.
            log: called with level ("error", "warning", "info", "debug") and text of what llama.cpp logs, in
                pieces of a line at times, from whichever thread; instead of stderr.
            verbose: show llama.cpp's log on stderr.

        Raises:
            ValueError: an argument that this model, or llama.cpp, does not allow; a bad set before anything
                is loaded.
            TypeError: an argument of the wrong type, or one of llama-cpp-python's without a counterpart; it
                says what to use instead.
            FileNotFoundError: no such file.
            llama_skip.ModelLoadError: llama.cpp cannot load the file or the adapter.
            RuntimeError: llama.cpp cannot create the context.
        """
        if n_parallel is not None and not dry_run:
            raise ValueError("n_parallel: only a dry run takes it")
        self._format = chat.chat_format(chat_format, chat_template)
        mp = _core.ModelParams()
        mp.skip_layers = skipset.layers_text(skip_layers, "skip_layers")
        mp.skip_scale = skipset.scale_text(skip_scale, "skip_scale")
        mp.disk_layers = skipset.layers_text(disk_layers, "disk_layers")
        mp.disk_scale = skipset.scale_text(disk_scale, "disk_scale")
        params.add_overrides(mp, kv_overrides)
        params.add_disk(mp, disk_strict, disk_idle)
        if skip_untested:
            mp.add_override("skip.untested", True)
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
            no_alloc=dry_run,
            use_extra_bufts=repack,
            log=log,
            verbose=verbose,
        )
        params.check_sizes(n_ctx=n_ctx, n_batch=n_batch, n_ubatch=n_ubatch, n_parallel=n_parallel or 1)
        n_single, n_all = params.thread_counts(n_threads, n_threads_batch)
        cp = _core.ContextParams()
        params.assign(
            cp,
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_ubatch=n_ubatch,
            n_seq_max=n_parallel,
            n_outputs_max=n_parallel,
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
            embeddings=embedding,
            kv_unified=embedding or n_parallel is not None or None,
            hidden_states=hidden_states,
        )
        depths = tier_texts(tiers)
        for name, layers in depths.items() if not skip_untested else ():  # before anything is loaded
            _core.check_skip(os.fsencode(model_path), layers, "", f"tiers: {name}", "")
        self._is_embedding = embedding
        self.verbose = verbose
        self.last_n_tokens_size = last_n_tokens_size
        super().__init__(
            os.fspath(model_path),
            mp,
            None if vocab_only else cp,
            seed=seed,
            logits_all=logits_all,
            lora=None if lora_path is None else (os.fspath(lora_path), lora_scale),
            tiers=depths,
        )

    @replaced(EMBEDDING)
    def embed(
        self, input: str | Sequence[str], *, normalize: bool = False, truncate: bool = True
    ) -> list[float] | list[list[float]] | list[list[list[float]]]:
        """Return the embedding of a text, or those of several; it needs `Llama(embedding=True)`.

        The context is empty afterwards.

        Args:
            input: one text or several.
            normalize: divide by the Euclidean norm.
            truncate: cut a text to n_batch tokens instead of raising.

        Returns:
            `[n_embd]` a text, or without pooling (see pooling_type()) `[n_tokens][n_embd]`; the scores of a
            ranking model.

        Raises:
            ValueError: a text without tokens, or with too many.
            RuntimeError: the class was made without embedding=True, or evaluation failed.
        """
        texts = [input] if isinstance(input, str) else list(input)
        found, _ = self._embed(texts, normalize, truncate)
        return found[0] if isinstance(input, str) else found

    def create_embedding(self, input: str | Sequence[str], model: str | None = None) -> EmbeddingResponse:
        """Return OpenAI's list of the embeddings of one text or several; see embed().

        Args:
            input: one text or several.
            model: the name in the result, by default the path.

        Raises:
            ValueError, RuntimeError: as by embed().
        """
        texts = [input] if isinstance(input, str) else list(input)
        found, n_tokens = self._embed(texts, False, True)
        return {
            "object": "list",
            "data": [{"object": "embedding", "embedding": e, "index": i} for i, e in enumerate(found)],
            "model": model or self.model_path,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }

    @classmethod
    @replaced(DOWNLOAD)
    def from_pretrained(
        cls: type[Self],
        repo_id: str,
        filename: str,
        additional_files: Sequence[str] | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Self:
        """Load a model of the Hugging Face Hub, or of its cache without network; it needs the extra `hub`.

        Args:
            repo_id: the repository, "owner/name".
            filename: the file's name in it, or a glob pattern that only it matches; the first file of a split
                model.
            additional_files: further files to download beside it, in the same form: the rest of a split
                model.
            local_dir: where to put the files instead of the cache.
            cache_dir: the cache instead of huggingface_hub's own.
            options: arguments of the class.

        Raises:
            ImportError: huggingface_hub is not installed.
            ValueError: no file or several match; and as by the class.
        """
        return cls(hub.download(repo_id, filename, additional_files, local_dir, cache_dir), **options)

    def _embed(self, texts: list[str], normalize: bool, truncate: bool) -> tuple[list[Any], int]:
        if not self._is_embedding:
            raise RuntimeError("embeddings need Llama(..., embedding=True)")
        sequences = [self.tokenize(text.encode()) for text in texts]
        found, n_tokens = embeddings.embed(self._history, sequences, normalize=normalize, truncate=truncate)
        return [values.tolist() for values in found], n_tokens
