"""Run GGUF models with chosen transformer blocks left out at load time.

>>> from llama_skip import Llama
>>> llm = Llama("model.gguf", skip_layers="10-20")
>>> llm("Once upon a time,", max_tokens=32)["choices"][0]["text"]

Blocks are numbered as in the file, from 0, and ranges are inclusive. Everything is imported when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_skip.annotate import Annotated, annotate_model
    from llama_skip.bake import Baked, bake_model
    from llama_skip.bench import bench_model
    from llama_skip.benchfile import Bench, BenchRow
    from llama_skip.bypass import Bypass
    from llama_skip.errors import ModelLoadError
    from llama_skip.eval import evaluate
    from llama_skip.evalfile import EvalRow, Evaluation, read_evaluation
    from llama_skip.grammar import LlamaGrammar
    from llama_skip.healing import heal_plan
    from llama_skip.identity import Identity, identify
    from llama_skip.importers import import_plan
    from llama_skip.llama import Llama
    from llama_skip.loaded import DeviceMemory, HiddenStates, Trace
    from llama_skip.memory import fit_gpu_layers
    from llama_skip.planfile import Plan, read_plan, write_plan
    from llama_skip.planning import plan_blocks, plan_memory, plan_speed
    from llama_skip.report import write_report
    from llama_skip.sampling import LogitsProcessorList, MinTokensLogitsProcessor, StoppingCriteriaList
    from llama_skip.scorefile import BlockScore, Score, Step, TextInfo, read_score, write_score
    from llama_skip.scoring import score_model
    from llama_skip.state import LlamaState

    __version__: str

_HOMES = {
    "Annotated": "annotate",
    "Baked": "bake",
    "Bench": "benchfile",
    "BenchRow": "benchfile",
    "BlockScore": "scorefile",
    "Bypass": "bypass",
    "DeviceMemory": "loaded",
    "EvalRow": "evalfile",
    "Evaluation": "evalfile",
    "HiddenStates": "loaded",
    "Identity": "identity",
    "Llama": "llama",
    "LlamaGrammar": "grammar",
    "LlamaState": "state",
    "LogitsProcessorList": "sampling",
    "MinTokensLogitsProcessor": "sampling",
    "ModelLoadError": "errors",
    "Plan": "planfile",
    "Score": "scorefile",
    "Step": "scorefile",
    "StoppingCriteriaList": "sampling",
    "TextInfo": "scorefile",
    "Trace": "loaded",
    "annotate_model": "annotate",
    "bake_model": "bake",
    "bench_model": "bench",
    "evaluate": "eval",
    "fit_gpu_layers": "memory",
    "heal_plan": "healing",
    "identify": "identity",
    "import_plan": "importers",
    "plan_blocks": "planning",
    "plan_memory": "planning",
    "plan_speed": "planning",
    "read_evaluation": "evalfile",
    "read_plan": "planfile",
    "read_score": "scorefile",
    "score_model": "scoring",
    "write_plan": "planfile",
    "write_report": "report",
    "write_score": "scorefile",
}
__all__ = [
    "Annotated",
    "Baked",
    "Bench",
    "BenchRow",
    "BlockScore",
    "Bypass",
    "DeviceMemory",
    "EvalRow",
    "Evaluation",
    "HiddenStates",
    "Identity",
    "Llama",
    "LlamaGrammar",
    "LlamaState",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "ModelLoadError",
    "Plan",
    "Score",
    "Step",
    "StoppingCriteriaList",
    "TextInfo",
    "Trace",
    "__version__",
    "annotate_model",
    "bake_model",
    "bench_model",
    "evaluate",
    "fit_gpu_layers",
    "heal_plan",
    "identify",
    "import_plan",
    "plan_blocks",
    "plan_memory",
    "plan_speed",
    "read_evaluation",
    "read_plan",
    "read_score",
    "score_model",
    "write_plan",
    "write_report",
    "write_score",
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
