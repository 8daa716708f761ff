"""Run GGUF models with chosen transformer blocks left out at load time.

>>> from llama_skip import Llama
>>> llm = Llama("model.gguf", skip_layers="13-14,25")
>>> llm("Once upon a time,", max_tokens=32)["choices"][0]["text"]

Blocks are numbered as in the file, from 0, and ranges are inclusive. Everything is imported when first used.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":  # an extension module's libraries are looked for in such folders, not on PATH
    for _folder in __path__:
        if os.path.isdir(os.path.join(_folder, "bin")):
            os.add_dll_directory(os.path.join(os.path.abspath(_folder), "bin"))

if TYPE_CHECKING:
    from llama_skip.bake.bake import Baked, bake_model
    from llama_skip.bench.bench import bench_model
    from llama_skip.bench.file import Bench, BenchRow
    from llama_skip.bypass.bypass import Bypass
    from llama_skip.errors import ModelLoadError
    from llama_skip.eval.evaluate import evaluate
    from llama_skip.eval.file import EvalRow, Evaluation, read_evaluation
    from llama_skip.files.identity import Identity, TextInfo, identify
    from llama_skip.heal.choose import plan_healed
    from llama_skip.heal.heal import heal_plan
    from llama_skip.llama.llama import Llama
    from llama_skip.measure.memory import fit_gpu_layers
    from llama_skip.model.grammar import LlamaGrammar
    from llama_skip.model.loaded import DeviceMemory, HiddenStates, Trace
    from llama_skip.model.sampling import LogitsProcessorList, MinTokensLogitsProcessor, StoppingCriteriaList
    from llama_skip.model.state import LlamaState
    from llama_skip.plan.annotate import Annotated, annotate_model
    from llama_skip.plan.choose import plan_blocks, plan_kv, plan_memory, plan_speed
    from llama_skip.plan.file import Plan, read_plan, write_plan
    from llama_skip.plan.imports import import_plan
    from llama_skip.report.report import write_report
    from llama_skip.score.file import BlockScore, Score, Step, read_score, write_score
    from llama_skip.score.score import score_model

    __version__: str

_HOMES = {
    "Annotated": "plan.annotate",
    "Baked": "bake.bake",
    "Bench": "bench.file",
    "BenchRow": "bench.file",
    "BlockScore": "score.file",
    "Bypass": "bypass.bypass",
    "DeviceMemory": "model.loaded",
    "EvalRow": "eval.file",
    "Evaluation": "eval.file",
    "HiddenStates": "model.loaded",
    "Identity": "files.identity",
    "Llama": "llama.llama",
    "LlamaGrammar": "model.grammar",
    "LlamaState": "model.state",
    "LogitsProcessorList": "model.sampling",
    "MinTokensLogitsProcessor": "model.sampling",
    "ModelLoadError": "errors",
    "Plan": "plan.file",
    "Score": "score.file",
    "Step": "score.file",
    "StoppingCriteriaList": "model.sampling",
    "TextInfo": "files.identity",
    "Trace": "model.loaded",
    "annotate_model": "plan.annotate",
    "bake_model": "bake.bake",
    "bench_model": "bench.bench",
    "evaluate": "eval.evaluate",
    "fit_gpu_layers": "measure.memory",
    "heal_plan": "heal.heal",
    "identify": "files.identity",
    "import_plan": "plan.imports",
    "plan_blocks": "plan.choose",
    "plan_healed": "heal.choose",
    "plan_kv": "plan.choose",
    "plan_memory": "plan.choose",
    "plan_speed": "plan.choose",
    "read_evaluation": "eval.file",
    "read_plan": "plan.file",
    "read_score": "score.file",
    "score_model": "score.score",
    "write_plan": "plan.file",
    "write_report": "report.report",
    "write_score": "score.file",
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
    "plan_healed",
    "plan_kv",
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
