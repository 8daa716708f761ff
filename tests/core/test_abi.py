"""The public structs are upstream's, and programs built for upstream's library work with ours."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from comparison import libllama
from comparison.builds import Build
from comparison.oracle import logits
from comparison.stock_build import ROOT

STRUCTS = {
    "llama_model_params": libllama.ModelParams,
    "llama_context_params": libllama.ContextParams,
    "llama_model_kv_override": libllama.KvOverride,
    "llama_batch": libllama.Batch,
    "ggml_tensor": libllama.Tensor,
}
# members of the structs that no ctypes twin of ours needs
MORE = {
    "llama_token_data": "id logit p",
    "llama_token_data_array": "data size selected sorted",
    "llama_model_tensor_buft_override": "pattern buft",
    "llama_model_quantize_params": (
        "nthread ftype output_tensor_type token_embedding_type allow_requantize quantize_output_tensor "
        "only_copy pure keep_split dry_run imatrix kv_overrides tt_overrides prune_layers max_buf_size"
    ),
    "llama_logit_bias": "token bias",
    "llama_sampler_chain_params": "no_perf",
    "llama_chat_message": "role content",
    "llama_perf_context_data": "t_start_ms t_load_ms t_p_eval_ms t_eval_ms n_p_eval n_eval n_reused",
    "llama_sampler_seq_config": "seq_id sampler",
}


def members(struct: type[ctypes.Structure]) -> list[str]:
    names = [name for name, *_ in struct._fields_]
    if "value" in names:  # an anonymous union
        names = [n for n in names if n != "value"] + [name for name, *_ in libllama.OverrideValue._fields_]
    return names


def layout(include: list[Path], tmp_path: Path) -> dict[str, int]:
    """Sizes and offsets by a compiler that sees these headers."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler
    fields = {name: members(struct) for name, struct in STRUCTS.items()} | {
        n: m.split() for n, m in MORE.items()
    }
    lines = []
    for name, names in fields.items():
        lines.append(f'    printf("{name} %zu\\n", sizeof(struct {name}));')
        lines += [f'    printf("{name}.{m} %zu\\n", offsetof(struct {name}, {m}));' for m in names]
    source = tmp_path / "layout.c"
    source.write_text(
        "#include <llama.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {\n"
        + "\n".join(lines)
        + "\n    return 0;\n}\n"
    )
    program = tmp_path / "layout"
    subprocess.run([compiler, *(f"-I{d}" for d in include), "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


def headers(environment: str, folder: Path) -> list[Path]:
    source = Path(os.environ.get(environment) or folder)
    if not (source / "include" / "llama.h").is_file():
        pytest.fail(f"{source} has no include/llama.h: build the package from this checkout first")
    return [source / "include", source / "ggml" / "include"]


def test_public_structs_are_upstreams(stock: Build, tmp_path: Path) -> None:
    theirs = headers("LLAMA_SKIP_STOCK_SOURCE", ROOT / "build" / "stock" / "source")
    patched = headers("LLAMA_SKIP_OURS_SOURCE", ROOT / "vendor" / "llama.cpp")
    expected = layout(theirs, tmp_path)
    assert layout(patched, tmp_path) == expected
    # what these tests call through ctypes is laid out like that as well
    for name, struct in STRUCTS.items():
        offsets = {m: getattr(struct, m).offset for m in members(struct)}
        assert offsets == {m: expected[f"{name}.{m}"] for m in offsets}
        assert name == "ggml_tensor" or ctypes.sizeof(struct) == expected[name]


def test_upstreams_header_is_unchanged() -> None:
    theirs = headers("LLAMA_SKIP_STOCK_SOURCE", ROOT / "build" / "stock" / "source")
    patched = headers("LLAMA_SKIP_OURS_SOURCE", ROOT / "vendor" / "llama.cpp")
    for a, b in zip(theirs, patched, strict=True):
        for header in a.glob("*.h"):
            assert header.read_bytes() == (b / header.name).read_bytes(), header.name


CLASS = """
import sys
import numpy as np
from llama_cpp import Llama
path, tokens, out, overrides = sys.argv[1], eval(sys.argv[2]), sys.argv[3], eval(sys.argv[4])
kwargs = dict(n_ctx=512, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False)
llm = Llama(path, kv_overrides=overrides, **kwargs)
llm.eval(tokens[:20])
llm.eval(tokens[20:21])
np.save(out, llm.scores[:21])
"""


@pytest.mark.parametrize(
    "overrides", [{"skip.layers": "10-20"}, {"skip.layers": "13-14;25", "skip.scale": "13:0.9"}, None]
)
def test_the_stock_python_class_with_our_library(
    ours: Build,
    smollm2: Path,
    tokens: list[int],
    llama_cpp: Path,
    tmp_path: Path,
    overrides: dict[str, str] | None,
) -> None:
    out = tmp_path / "logits.npy"
    env = {**os.environ, "LLAMA_CPP_LIB_PATH": str(ours.lib), "PYTHONPATH": str(llama_cpp)}
    command = [sys.executable, "-c", CLASS, str(smollm2), repr(tokens[:21]), str(out), repr(overrides)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = ours.worker.call(logits, smollm2, tokens[:21], overrides or {}, n_single=1)
    assert np.array_equal(np.load(out), expected)
