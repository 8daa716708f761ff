"""docs/sets: what stands in the sidecar is what stands in the files beside it, and it is the model's."""

from __future__ import annotations

import shutil
from pathlib import Path

from llama_skip import Llama, identify, read_plan, read_score

from comparison.stock_build import ROOT

SETS = ROOT / "docs" / "sets"
NAME = "SmolLM2-135M-Instruct.Q4_1"


def test_sidecar_of_smollm2(smollm2: Path, tmp_path: Path) -> None:
    model = tmp_path / f"{NAME}.gguf"
    model.symlink_to(smollm2)
    shutil.copy(SETS / f"{NAME}.skip.gguf", tmp_path)

    def blocks(spec: str) -> list[int]:
        with Llama(model, skip_layers=spec, dry_run=True, verbose=False) as llm:
            return [int(block) for block in llm.skip_layers]

    score = read_score(SETS / f"{NAME}.score.json")
    assert score.model.file_id == identify(model).file_id
    path = [step.block for step in score.path]
    for share, count in ((10, 3), (20, 6), (30, 9)):
        plan = read_plan(SETS / f"{NAME}-{share}.json")
        assert plan.model.file_id == score.model.file_id
        assert blocks(f"@p{share}") == blocks(plan.skip_layers)
        assert blocks(f"auto:{share}%") == sorted(path[:count])
