"""Kernels in C++: tests of them are skipped where they cannot be had; others run with them and without."""

from __future__ import annotations

import subprocess

import pytest

from afina.kernels.cpu import native

KNOWS = ("c++", "-mavx512bf16", "-fsyntax-only", "-x", "c++", "/dev/null")
"""Whether the system's compiler knows the instructions that the kernels are made of."""


def switch_off(patch: pytest.MonkeyPatch) -> None:
    for module in ("cpu.native.attention", "cpu.native.rowwise", "speed"):
        patch.setattr(f"afina.kernels.{module}.library", lambda: None)


@pytest.fixture
def native_library() -> None:
    if native.library() is not None:
        return
    why = native.why_not()
    if "could not compile" in why and subprocess.run(KNOWS, check=False).returncode == 0:
        pytest.fail(why)  # the compiler is one that can
    pytest.skip(f"no native kernels: {why}")


@pytest.fixture(params=["native", "torch"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether native kernels serve; the test runs both ways."""
    if request.param == "torch":
        switch_off(monkeypatch)
        return False
    request.getfixturevalue("native_library")
    return True
