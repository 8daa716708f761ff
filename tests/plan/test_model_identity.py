"""The two identities: equal to docs/metadata.md calculated from gguf-py's reading, and what changes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from llama_skip import ModelLoadError, _core, bake_model
from llama_skip.files.identity import Identity, check_same
from llama_skip.plan.file import Plan, read_plan
from support.metadata import annotated_copy
from support.tiny import small_vocab, with_mtp_head

from comparison.builds import Build
from comparison.oracle import TensorInfo, changed_copy, left_out, rewritten_copy, tensors

SMALL, N_SAMPLES, SAMPLE = 512 * 1024, 32, 4096
FIELDS = [key for key in Identity.__dataclass_fields__ if key != "name"]


def identify(path: Path) -> dict[str, Any]:
    return _core.identify(str(path))


def ids(path: Path) -> tuple[str, str]:
    found = identify(path)
    return found["model_id"], found["file_id"]


def fnv1a(fields: Iterable[bytes]) -> str:
    state = 0xCBF29CE484222325
    for byte in b"".join(b"%d:%s" % (len(field), field) for field in fields):
        state = (state ^ byte) * 0x100000001B3 % 2**64
    return f"{state:016x}"


def expected_ids(path: Path) -> tuple[str, str]:
    """Both identities as docs/metadata.md defines them."""
    reader = GGUFReader(path)

    def value(key: str, default: Any = None) -> Any:
        return reader.fields[key].contents() if key in reader.fields else default

    arch = value("general.architecture")
    infos = sorted(reader.tensors, key=lambda t: t.name.encode())
    fields = ["llama-skip-model-1", arch, value(f"{arch}.block_count"), value(f"{arch}.embedding_length", 0)]
    for t in infos:
        if not t.name.endswith((".scale", ".input_scale")):
            shape = [int(n) for n in t.shape]
            while len(shape) > 1 and shape[-1] == 1:
                shape.pop()
            fields += [t.name, "x".join(map(str, shape))]
    fields += [value("tokenizer.ggml.model", ""), *value("tokenizer.ggml.tokens", [])]
    model_id = fnv1a(str(field).encode() for field in fields)

    parts = [b"llama-skip-file-1", model_id.encode()]
    for t in infos:
        parts += [t.name.encode(), b"%d" % t.tensor_type]
    by_size = sorted(infos, key=lambda t: int(t.n_bytes))  # of one size: by name
    total = np.cumsum([int(t.n_bytes) for t in by_size])
    n_small = int((total <= SMALL).sum())
    large = by_size[n_small:]
    n = min(len(large), N_SAMPLES)
    parts += [t.data.tobytes() for t in by_size[:n_small]]
    parts += [large[i * len(large) // n].data.tobytes()[:SAMPLE] for i in range(n)]
    return model_id, fnv1a(parts)


def test_equals_the_definition(smollm2: Path, small: Path) -> None:
    assert ids(smollm2) == expected_ids(smollm2)
    assert ids(small) == expected_ids(small)


def test_says_what_the_file_is(smollm2: Path) -> None:
    found = identify(smollm2)
    infos = tensors(smollm2)
    assert {key: found[key] for key in ("architecture", "n_layer", "n_embd", "n_vocab", "file_type")} == {
        "architecture": "llama",
        "n_layer": 30,
        "n_embd": 576,
        "n_vocab": 49152,
        "file_type": "Q4_1",
    }
    assert found["weights_bytes"] == sum(t.size for t in infos)
    halves = {t: half for half in ("attn", "ffn") for t in left_out(smollm2, f"0-29:{half}")}
    assert sorted(found["tensors"]) == sorted(
        (t.name, t.size, t.type.name.lower(), -1 if t.block is None else t.block, halves.get(t, ""))
        for t in infos
    )


def test_a_head_that_predicts_further_tokens_is_no_block(tmp_path: Path) -> None:
    path = with_mtp_head(tmp_path / "mtp.gguf", small_vocab(tmp_path / "vocab.gguf"))
    found = identify(path)
    assert found["n_layer"] == 6
    assert max(block for *_, block, _ in found["tensors"]) == 6
    assert ids(path) == expected_ids(path)


def test_metadata_that_is_not_the_model_does_not_count(small: Path, tmp_path: Path) -> None:
    note = {"general.name": "another", "skip.score.version": 1, "skip.plan.fast.layers": "1"}
    assert ids(annotated_copy(small, tmp_path / "noted.gguf", note)) == ids(small)


def test_companion_tensors_are_of_the_file(small: Path, tmp_path: Path) -> None:
    def with_scale(name: str, data: np.ndarray) -> dict[str, np.ndarray]:
        scale = {"blk.1.ffn_up.scale": np.ones(1, np.float32)} if name == "blk.1.ffn_up.weight" else {}
        return {name: data, **scale}

    copy = rewritten_copy(small, tmp_path / "scaled.gguf", with_scale)
    assert ids(copy)[0] == ids(small)[0]
    assert ids(copy)[1] != ids(small)[1]
    assert ids(copy) == expected_ids(copy)


def test_a_quantization_is_another_file_of_the_model(ours: Build, small: Path, tmp_path: Path) -> None:
    quantized = tmp_path / "q8.gguf"
    done = ours.run("llama-quantize", small, quantized, "Q8_0", "1")
    assert done.returncode == 0, done.stderr
    assert ids(quantized)[0] == ids(small)[0]
    assert ids(quantized)[1] != ids(small)[1]
    assert identify(quantized)["file_type"] == "Q8_0"


def increment(names: set[str], offset: int) -> Callable[[TensorInfo, bytes], bytes | None]:
    """A change of one byte of the tensors `names`."""

    def change(t: TensorInfo, data: bytes) -> bytes | None:
        if t.name not in names:
            return None
        return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]

    return change


@pytest.mark.parametrize("name", ["output_norm.weight", "blk.2.attn_norm.weight", "blk.3.attn_k.weight"])
def test_a_changed_small_tensor_is_another_file(small: Path, tmp_path: Path, name: str) -> None:
    copy = changed_copy(small, tmp_path / "changed.gguf", increment({name}, 100))
    assert ids(copy)[0] == ids(small)[0]
    assert ids(copy)[1] != ids(small)[1]


def test_a_fine_tune_of_one_kind_of_matrix_is_another_file(smollm2: Path, tmp_path: Path) -> None:
    """Merging an adapter of the queries changes no norm."""
    names = {f"blk.{il}.attn_q.weight" for il in range(30)}
    copy = changed_copy(smollm2, tmp_path / "tuned.gguf", increment(names, 8))
    assert ids(copy)[0] == ids(smollm2)[0]
    assert ids(copy)[1] != ids(smollm2)[1]


def test_another_shape_name_or_vocabulary_is_another_model(small: Path, tmp_path: Path) -> None:
    def renamed(name: str, data: np.ndarray) -> dict[str, np.ndarray]:
        return {name.replace("blk.3.attn_q_norm", "blk.3.attn_other"): data}

    def cut(name: str, data: np.ndarray) -> dict[str, np.ndarray]:
        return {name: data[:-1] if name == "blk.3.ffn_up.weight" else data}

    found = {ids(small)[0]}
    for i, change in enumerate((renamed, cut)):
        found.add(ids(rewritten_copy(small, tmp_path / f"{i}.gguf", change))[0])
    tokens = GGUFReader(small).fields["tokenizer.ggml.tokens"].contents()
    found.add(
        ids(annotated_copy(small, tmp_path / "t.gguf", {"tokenizer.ggml.tokens": [*tokens[:-1], "<new>"]}))[0]
    )
    found.add(ids(annotated_copy(small, tmp_path / "m.gguf", {"tokenizer.ggml.model": "other"}))[0])
    found.add(ids(annotated_copy(small, tmp_path / "n.gguf", {"qwen3.block_count": 3}))[0])
    assert len(found) == 6


def test_a_split_model_is_the_same_file(ours: Build, small: Path, tmp_path: Path) -> None:
    done = ours.run("llama-gguf-split", "--split", "--split-max-tensors", "20", small, tmp_path / "part")
    assert done.returncode == 0, done.stderr
    parts = sorted(tmp_path.glob("part-*.gguf"))
    assert len(parts) == 3
    assert ids(parts[0]) == ids(small)
    assert identify(parts[0])["weights_bytes"] == identify(small)["weights_bytes"]
    with pytest.raises(ModelLoadError, match="first split"):
        identify(parts[1])
    parts[2].unlink()
    with pytest.raises(ModelLoadError, match=r"part-00003-of-00003\.gguf"):
        identify(parts[0])


def test_reads_under_one_mib_of_weights(smollm2: Path) -> None:
    def n_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    header = min(t.offset for t in tensors(smollm2))
    before = n_read()
    identify(smollm2)
    assert header <= n_read() - before < header + 2**20


def test_errors(tmp_path: Path, small: Path) -> None:
    with pytest.raises(FileNotFoundError):
        identify(tmp_path / "none.gguf")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"not a model, but long enough for a header")
    with pytest.raises(ModelLoadError, match=r"bad\.gguf.*invalid magic"):
        identify(bad)
    bad.write_bytes(small.read_bytes()[:-4096])
    with pytest.raises(ModelLoadError, match="not within the file bounds"):
        identify(bad)


def test_a_plan_by_hand_needs_the_two_identities(small: Path, tmp_path: Path) -> None:
    """As docs/metadata.md says, and as the tools read it."""
    model_id, file_id = ids(small)
    path = tmp_path / "plan.json"

    def plan(model: object) -> Plan:
        content = {"format": "llama-skip-plan", "version": 1, "model": model, "skip_layers": "1-2"}
        path.write_text(json.dumps(content))
        return read_plan(path)

    about = {"model_id": model_id, "file_id": file_id}
    wanted = Identity(small.name, **{key: identify(small)[key] for key in FIELDS})
    assert check_same(plan(about).model, wanted, "it") == ""
    assert plan({**about, "name": "x.gguf", "newer": [1]}).model == replace(plan(about).model, name="x.gguf")
    assert bake_model(small, tmp_path / "baked.gguf", plan=path).skip_layers == "1-2"
    assert check_same(plan({**about, "file_id": "0" * 16}).model, wanted, "it") == (
        "it was made with another file: same architecture and shapes, other weights "
        "(another quantization, or a fine-tune)"
    )
    with pytest.raises(ValueError) as error:
        check_same(plan({**about, "model_id": "0" * 16}).model, wanted, "it")
    assert str(error.value) == (
        f"it is about another model: model {'0' * 16}, not small.gguf (qwen3, 4 blocks of "
        f"width 64, model {model_id})"
    )
    for model, missing in (
        ({"model_id": model_id}, "file_id"),
        ({"file_id": file_id}, "model_id"),
        ({**about, "file_id": None}, "file_id"),
        (None, "model_id"),
        (model_id, "model_id"),
    ):
        with pytest.raises(ValueError, match=f"which model it is about: {missing} is missing"):
            plan(model)
