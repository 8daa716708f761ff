"""The lm-eval model against arithmetic on logits, and a task of lm-eval's own machinery on it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_skip import Llama
from llama_skip.files.identity import identify
from llama_skip.heal.heal import heal_plan
from llama_skip.plan.file import Plan, is_gguf, write_plan

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
from llama_skip.eval.harness import HarnessModel, completion_options
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

ONE = {"n_threads": 1, "n_threads_batch": 1}
QUESTION, ANSWERS = "The keeper lit the", [" lamp", " fire", " of the boats in the harbour"]


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]  # type: ignore[arg-type]


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


@pytest.fixture(params=["2", "1-2", "1:attn;2:ffn;3"])
def model(request: pytest.FixtureRequest, tiny: Path) -> Any:
    return get_model("llama-skip")(model=str(tiny), skip_layers=request.param, n_ctx=64, **ONE)


def test_log_likelihood(model: Any, tiny: Path) -> None:
    found = model.loglikelihood(requests("loglikelihood", *((QUESTION, answer) for answer in ANSWERS)))
    with Llama(
        tiny, skip_layers=model.llm.skip_layers, n_ctx=64, flash_attn=None, verbose=False, **ONE
    ) as llm:
        for answer, (value, is_greedy) in zip(ANSWERS, found, strict=True):
            n = len(llm.tokenize(QUESTION.encode()))
            tokens = llm.tokenize((QUESTION + answer).encode())
            p = log_softmax(llm.logits(tokens))
            expected = sum(p[i - 1, tokens[i]] for i in range(n, len(tokens)))
            assert value == pytest.approx(expected, abs=1e-4)
            assert is_greedy == all(p[i - 1].argmax() == tokens[i] for i in range(n, len(tokens)))
        greedy = llm.detokenize([int(llm.logits(llm.tokenize(QUESTION.encode()))[-1].argmax())]).decode()
    ((_, is_greedy),) = model.loglikelihood(requests("loglikelihood", (QUESTION, greedy)))
    assert is_greedy


def test_a_long_text_is_predicted_once(model: Any, tiny: Path) -> None:
    text = " ".join(ANSWERS * 12)
    (found,) = model.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    with Llama(
        tiny, skip_layers=model.llm.skip_layers, n_ctx=64, flash_attn=None, verbose=False, **ONE
    ) as llm:
        tokens = llm.tokenize(text.encode(), add_bos=False)
        assert len(tokens) > 2 * 64
        before, expected = [llm.token_bos()], 0.0
        for i in range(0, len(tokens), 64):
            piece = tokens[i : i + 64]
            if len(piece) < 64:  # the last window is full too, of tokens that were predicted before
                start = len(tokens) - 64
                p = log_softmax(llm.logits(tokens[start - 1 : -1]))[i - start :]
            else:
                p = log_softmax(llm.logits([*before, *piece[:-1]]))
            expected += sum(p[j, token] for j, token in enumerate(piece))
            before = piece[-1:]
    assert found == pytest.approx(expected, abs=1e-3)


def test_writing(model: Any, tiny: Path) -> None:
    wanted = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    (found,) = model.generate_until(requests("generate_until", (QUESTION, wanted)))
    with Llama(
        tiny, skip_layers=model.llm.skip_layers, n_ctx=64, flash_attn=None, verbose=False, **ONE
    ) as llm:
        expected = llm(QUESTION, max_tokens=8, temperature=0, stop=["\n"])
    assert found == expected["choices"][0]["text"]
    stop = found[3:5]
    (shorter,) = model.generate_until(requests("generate_until", (QUESTION, {**wanted, "until": stop})))
    assert shorter == found[: found.index(stop)]
    with pytest.raises(ValueError, match="n_ctx=64 has no room for 256 tokens"):
        model.generate_until(requests("generate_until", (QUESTION, {"until": []})))


def test_generation_arguments() -> None:
    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert completion_options({"until": "x", "do_sample": False, "temperature": 0.7}) == {
        "max_tokens": 256,
        "stop": ["x"],
        "temperature": 0.0,
        **off,
    }
    found = completion_options(
        {"max_new_tokens": 9, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}
    )
    assert found == {
        "max_tokens": 9,
        "stop": [],
        "temperature": 0.7,
        **off,
        "top_p": 0.9,
        "repeat_penalty": 1.1,
    }
    with pytest.raises(ValueError, match="does not have: num_beams"):
        completion_options({"num_beams": 4})


def test_plans(tiny: Path, smollm2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.json"
    write_plan(plan, Plan(identify(tiny), "1-2", "1:0.5"))
    model = HarnessModel.create_from_arg_string(f"model={tiny},plan={plan},n_ctx=64,n_threads=1")
    assert (model.llm.skip_layers, model.llm.skip_scale) == ((1, 2), {1: 0.5})
    assert "plan.json" not in capsys.readouterr().err
    write_plan(plan, Plan(replace(identify(tiny), file_id="0" * 16), "1-2"))
    HarnessModel.create_from_arg_string(f"model={tiny},plan={plan},n_ctx=64,n_threads=1").llm.close()
    assert f"{plan} was made with tiny.gguf (" in capsys.readouterr().err
    model = HarnessModel.create_from_arg_string(f"model={tiny},skip_layers=0;2-3,n_ctx=64,n_threads=1")
    assert model.llm.skip_layers == (0, 2, 3)
    text = tmp_path / "text.txt"
    text.write_text("The harbour lay still before the first boats came in. " * 40)
    healed = tmp_path / "healed.gguf"
    heal_plan(tiny, skip_layers="1-2", text=text, n_ctx=64, n_tokens=512, output=healed, n_threads=1)
    assert is_gguf(healed)
    model = HarnessModel.create_from_arg_string(f"model={tiny},plan={healed},n_ctx=64,n_threads=1")
    expected = Llama(tiny, skip_layers=f"@{healed}", n_ctx=64, flash_attn=None, verbose=False, **ONE)
    assert np.array_equal(model.llm.logits([5, 6, 7]), expected.logits([5, 6, 7]))
    with pytest.raises(ValueError, match="plan brings its own"):
        HarnessModel(str(tiny), plan=str(plan), skip_layers=1)
    with pytest.raises(ValueError, match="is about another model"):
        HarnessModel(str(smollm2), plan=str(plan))


def test_a_chat_prompt(smollm2: Path) -> None:
    model = HarnessModel(str(smollm2), n_ctx=64, **ONE)
    prompt = model.apply_chat_template([{"role": "user", "content": "Say yes."}])
    assert "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant" in prompt
    tokens = model.tok_encode(prompt)
    assert tokens.count(model.llm.token_bos()) == prompt.count("<|im_start|>")
    assert "im_start" in model.chat_template()


def test_a_task(tiny: Path, tmp_path: Path) -> None:
    """lm-eval itself, from a local data set to a score."""
    from lm_eval import simple_evaluate

    rows = [{"question": f"{QUESTION}", "choices": ANSWERS, "answer": i} for i in range(3)]
    data = tmp_path / "rows.json"
    data.write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    model = HarnessModel(str(tiny), skip_layers="1", n_ctx=64, **ONE)
    found = simple_evaluate(model=model, tasks=[task], bootstrap_iters=0)
    # the same question with each answer as the right one: exactly one is counted
    assert found["results"]["local"]["acc,none"] == pytest.approx(1 / 3)
