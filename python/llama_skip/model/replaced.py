"""llama-cpp-python's arguments that have no counterpart here: a TypeError that says what to use instead."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

CONSTRUCTION = {
    "lora_base": "adapters are applied to the loaded model: lora_path",
    "chat_handler": "chat_format or chat_template; for images, llama-server --mmproj",
    "draft_model": "llama-server --model-draft, or --spec-type for drafts without a model",
    "tokenizer": "prompts may be given as tokens",
    "numa": "start Python with numactl",
    "spm_infill": "give the prompt as tokens, in the order that the model wants",
}
SAMPLING = {
    "tfs_z": "llama.cpp no longer has tail-free sampling: min_p",
    "penalize_nl": "llama.cpp no longer has it: logit_bias={llm.token_nl(): ...}",
}
ONE_TOKEN = {**SAMPLING, "idx": "truncate() to that token and eval() it again"}
EMBEDDING = {"return_count": "create_embedding(), whose usage counts the tokens"}
DOWNLOAD = {"local_dir_use_symlinks": "huggingface_hub no longer has it: local_dir"}


def replaced(reasons: dict[str, str]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function refuse keywords with a reason, which stands in a TypeError."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            for name in kwargs:
                if name in reasons:
                    raise TypeError(f"{name} is not supported, use instead: {reasons[name]}")
            return function(*args, **kwargs)

        return checked

    return decorate
