"""Run GGUF models with chosen transformer blocks left out at load time.

>>> from llama_skip import Llama
>>> llm = Llama("model.gguf", skip_layers="10-20")
>>> llm("Once upon a time,", max_tokens=32)["choices"][0]["text"]

Blocks are numbered as in the file, from 0, and ranges are inclusive. Everything is imported when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_skip.errors import ModelLoadError
    from llama_skip.eval import evaluate
    from llama_skip.evalfile import EvalRow, Evaluation
    from llama_skip.grammar import LlamaGrammar
    from llama_skip.llama import Llama
    from llama_skip.loaded import DeviceMemory, HiddenStates
    from llama_skip.memory import fit_gpu_layers
    from llama_skip.planfile import Plan
    from llama_skip.planning import plan_blocks, plan_memory, plan_speed
    from llama_skip.sampling import LogitsProcessorList, MinTokensLogitsProcessor, StoppingCriteriaList
    from llama_skip.state import LlamaState

    __version__: str

_HOMES = {
    "DeviceMemory": "loaded",
    "EvalRow": "evalfile",
    "Evaluation": "evalfile",
    "HiddenStates": "loaded",
    "Llama": "llama",
    "LlamaGrammar": "grammar",
    "LlamaState": "state",
    "LogitsProcessorList": "sampling",
    "MinTokensLogitsProcessor": "sampling",
    "ModelLoadError": "errors",
    "Plan": "planfile",
    "StoppingCriteriaList": "sampling",
    "evaluate": "eval",
    "fit_gpu_layers": "memory",
    "plan_blocks": "planning",
    "plan_memory": "planning",
    "plan_speed": "planning",
}
__all__ = [
    "DeviceMemory",
    "EvalRow",
    "Evaluation",
    "HiddenStates",
    "Llama",
    "LlamaGrammar",
    "LlamaState",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "ModelLoadError",
    "Plan",
    "StoppingCriteriaList",
    "__version__",
    "evaluate",
    "fit_gpu_layers",
    "plan_blocks",
    "plan_memory",
    "plan_speed",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = import_module("llama_skip._core").version()
    elif name in _HOMES:
        value = getattr(import_module(f"llama_skip.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'llama_skip' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
