"""Plans from what other projects write, in small files of their formats."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# the rows and keys of the fork's `llama-imatrix --show-statistics`
LAYERINFO: dict[str, Any] = {
    "model": "small.gguf",
    "method": "imatrix-cosine-bi",
    "n_layer": 4,
    "layers": [
        {"layer": 0, "cossim": 0.0, "bi": 1.0, "zd": 0.1, "bias": 3.0},
        {"layer": 1, "cossim": 0.9, "bi": 0.1, "zd": 0.1, "bias": 3.0},
        {"layer": 2, "cossim": 0.8, "bi": 0.2, "zd": 0.1, "bias": 3.0},
        {"layer": 3, "cossim": 0.99, "bi": 0.01, "zd": 0.1, "bias": 3.0},
    ],
    "recommended_skip": {"2": [0, 2], "4": [0, 1, 2]},
}
SWIFT = {
    "tiny_cnndm": {"attention": [1, 2, 3], "mlp": [0, 2, 3]},
    "tiny_humaneval": {"attention": [1], "mlp": [1, 2]},
}


def import_file(path: Path, text: str, model: Path, **kwargs: Any) -> Any:
    from llama_skip import import_plan

    path.write_text(text)
    return import_plan(path, model, **kwargs)


def command(*args: object) -> subprocess.CompletedProcess[str]:
    code = "import sys; from llama_skip.cli import main; sys.exit(main(['import', *sys.argv[1:]]))"
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)


def test_a_row_of_blocks(small: Path, tmp_path: Path) -> None:
    from llama_skip.files.identity import identify

    path = tmp_path / "block_order.csv"
    for n, layers in ((1, "2"), (2, "0,2"), (3, "0,2-3")):
        plan = import_file(path, "2,0,3,1\n", small, n_blocks=n)
        assert plan.skip_layers == layers and plan.skip_scale == ""
    assert plan.model == identify(small)
    assert plan.found.to_json() == {"method": "shortened-llm", "imported": "block_order.csv"}


def test_layerinfo_gives_its_own_list_or_its_most_similar_blocks(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf.layerinfo.json"
    text = json.dumps(LAYERINFO)
    assert import_file(path, text, small, n_blocks=2).skip_layers == "0,2"
    # as the fork does where it has no list of that length: never the last block
    plan = import_file(path, text, small, n_blocks=1)
    assert plan.skip_layers == "1"
    assert plan.found.to_json() == {
        "method": "layerinfo",
        "score": "imatrix-cosine-bi",
        "imported": path.name,
    }
    assert import_file(path, text, small, n_blocks=3).skip_layers == "0-2"
    with pytest.raises(ValueError, match="4 blocks are not possible, it orders 3"):
        import_file(path, text, small, n_blocks=4)


def test_layerinfo_of_the_residual_stream(small: Path, tmp_path: Path) -> None:
    content = {
        **LAYERINFO,
        "method": "residual-stream-angular-distance",
        "n_embd": 64,
        "layers": [{"layer": 1, "bi": 0.3}, {"layer": 2, "bi": 0.1}, {"layer": 3, "bi": 0.2}],
        "recommended_skip": {"2": [1, 2], "4": [], "8": []},
    }
    path = tmp_path / "model.gguf.residual.layerinfo.json"
    assert import_file(path, json.dumps(content), small, n_blocks=1).skip_layers == "2"
    assert import_file(path, json.dumps(content), small, n_blocks=2).skip_layers == "1-2"


def test_swift_gives_blocks_and_halves(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "skip_layers.json"
    plan = import_file(path, json.dumps(SWIFT), small, entry="tiny_cnndm")
    assert plan.skip_layers == "2-3,1:attn,0:ffn"
    assert plan.found.to_json() == {
        "method": "swift",
        "entry": "tiny_cnndm",
        "imported": "skip_layers.json",
    }
    one = json.dumps({"tiny": {"attention": [1], "mlp": [1]}})
    plan = import_file(path, one, small)
    assert plan.skip_layers == "1"


@pytest.mark.parametrize(
    ("text", "kwargs", "words"),
    [
        ("0,1\n", {}, "say how many to leave out with --blocks"),
        ("0,1\n", {"n_blocks": 0}, "0 blocks are not possible"),
        ("0,1\n", {"n_blocks": 3}, "3 blocks are not possible, it orders 2"),
        ("0,4\n", {"n_blocks": 1}, "block 4 is out of range, small.gguf has blocks 0-3"),
        ("1,1\n", {"n_blocks": 1}, "a block is named twice"),
        ("0,1\n2,3\n", {"n_blocks": 1}, "found 2 rows"),
        ("", {"n_blocks": 1}, "found 0 rows"),
        ("a,b\n", {"n_blocks": 1}, "nor is it JSON"),
        ("0,1\n", {"n_blocks": 1, "entry": "x"}, "has no entries"),
        ("0,1,2,3\n", {"n_blocks": 4}, "skip_layers"),
        ("{", {}, "not a JSON file"),
        ("{}", {}, "neither a layerinfo.json nor a skip_layers.json"),
        ("[1, 2]", {}, "neither a layerinfo.json nor a skip_layers.json"),
        ('{"a": {"attention": [1]}}', {}, "neither a layerinfo.json nor a skip_layers.json"),
        (json.dumps({**LAYERINFO, "n_layer": 36}), {"n_blocks": 2}, "is about a model of 36 blocks"),
        (json.dumps(LAYERINFO), {}, "say how many to leave out with --blocks"),
        ('{"layers": [{"layer": 1}]}', {"n_blocks": 1}, "expected a layer with its cossim or bi"),
        ('{"layers": [{"layer": 1, "bi": NaN}]}', {"n_blocks": 1}, "layer 1 has no finite score"),
        ('{"layers": [{"layer": "1", "bi": 1}]}', {"n_blocks": 1}, "'1' is not the number of a block"),
        (json.dumps(SWIFT), {}, "name one with --entry: tiny_cnndm, tiny_humaneval"),
        (json.dumps(SWIFT), {"entry": "x"}, "has no entry 'x'"),
        (json.dumps(SWIFT), {"entry": "tiny_cnndm", "n_blocks": 2}, "--blocks cannot choose"),
        ('{"a": {"attention": [], "mlp": []}}', {}, "nothing is left out"),
        ('{"a": {"attention": [7], "mlp": [7]}}', {}, "skip_layers.json, a: block 7 is out of range"),
    ],
)
def test_what_is_refused(small: Path, tmp_path: Path, text: str, kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        import_file(tmp_path / "skip_layers.json", text, small, **kwargs)


def test_the_command(small: Path, tmp_path: Path) -> None:
    from llama_skip.plan.file import read_plan

    source, output = tmp_path / "skip_layers.json", tmp_path / "plan.json"
    source.write_text(json.dumps(SWIFT))
    done = command(source, "--model", small, "--entry", "tiny_cnndm", "-o", output)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{output}: --skip-layers 2-3,1:attn,0:ffn\n"
    assert read_plan(output).skip_layers == "2-3,1:attn,0:ffn"
    before = output.read_bytes()
    for args, words in (
        ([source, "--model", small, "-o", output], "name one with --entry"),
        ([tmp_path / "absent.csv", "--model", small, "-o", output], "absent.csv: No such file or directory"),
        ([source, "--model", tmp_path / "absent.gguf", "-o", output], "absent.gguf"),
    ):
        done = command(*args)
        assert done.returncode == 1 and words in done.stderr and done.stdout == ""
        assert "Traceback" not in done.stderr
    assert output.read_bytes() == before
