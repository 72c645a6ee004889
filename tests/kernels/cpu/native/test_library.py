"""Kernels in C++ are compiled once, found again, and do without where they cannot be had, saying why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afina.kernels.cpu import native


@pytest.fixture
def find(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Looks for a library in an empty cache."""
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv(native.SWITCH, raising=False)
    monkeypatch.setattr(native, "FLAGS", ("-O0", *native.FLAGS[1:]))  # compiles three times as fast
    return native._found.__wrapped__


def compiler(folder: Path, body: str) -> str:
    path = folder / "fake-g++"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.usefixtures("native_library")
def test_one_compilation_serves_later_processes(find, tmp_path, monkeypatch):
    calls, own = [], native.subprocess.run
    monkeypatch.setattr(native.subprocess, "run", lambda command, **k: calls.append(command) or own(command, **k))
    for _ in range(2):
        found, why = find()
        assert (found is not None, why) == (True, "")
    assert ["--version" in c for c in calls] == [True, False, True]
    assert [p.name for p in (tmp_path / "native").glob("*/*")] == ["kernels.so"]


@pytest.mark.usefixtures("native_library")
def test_another_compiler_makes_another_library(find, tmp_path, monkeypatch):
    find()
    body = f'[ "$1" = --version ] && echo another && exit 0\nexec {native.shutil.which("g++") or "c++"} "$@"'
    monkeypatch.setenv("CXX", compiler(tmp_path, body))
    assert find()[0] is not None
    assert len(list((tmp_path / "native").glob("*/kernels.so"))) == 2


@pytest.mark.usefixtures("native_library")
def test_a_compiler_for_c_will_do(find, monkeypatch):
    if native.shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    monkeypatch.setenv("CXX", "gcc")
    found, why = find()
    assert (found is not None, why) == (True, "")


def test_what_cannot_be_loaded_is_not_kept(find, tmp_path, monkeypatch):
    body = '[ "$1" = --version ] && echo 1 && exit 0\nfor last; do :; done; echo no library > "$last"'
    monkeypatch.setenv("CXX", compiler(tmp_path, body))
    assert "invalid ELF header" in find()[1] or "too short" in find()[1]
    assert not list(tmp_path.glob("native/*/kernels.so"))


@pytest.mark.parametrize(
    "case", ["switched off", "no compiler", "no instructions", "fault", "no such file", "no cache"]
)
def test_without_a_library_it_is_said_why(case, find, tmp_path, monkeypatch):
    told = {
        "switched off": "AFINA_NATIVE=0", "no compiler": "there is no C++ compiler", "fault": "tile.h:1: error: bad",
        "no instructions": "torch uses DEFAULT on x86_64 here", "no such file": "nowhere", "no cache": "cannot write",
    }[case]  # fmt: skip
    if case == "switched off":
        monkeypatch.setenv(native.SWITCH, "0")
    elif case == "no compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif case == "no instructions":
        monkeypatch.setattr(native.platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    elif case == "fault":
        body = '[ "$1" = --version ] && echo 1 && exit 0\necho "tile.h:1: error: bad" >&2; exit 1'
        monkeypatch.setenv("CXX", compiler(tmp_path, body))
    elif case == "no such file":
        monkeypatch.setenv("CXX", str(tmp_path / "nowhere"))
    else:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("AFINA_CACHE", str(tmp_path / "file"))
    found, why = find()
    assert found is None
    assert told in why
    assert not list(tmp_path.glob("native/*/kernels.so"))
