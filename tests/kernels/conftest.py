"""Kernels in C++: tests of them are skipped where they cannot be had; others run with them and without."""

from __future__ import annotations

import pytest

from afina.kernels.cpu import native


def switch_off(patch: pytest.MonkeyPatch) -> None:
    for module in ("cpu.native.attention", "cpu.native.rowwise", "speed"):
        patch.setattr(f"afina.kernels.{module}.library", lambda: None)


@pytest.fixture
def native_library() -> None:
    if native.library() is None:
        pytest.skip(f"no native kernels: {native.why_not()}")


@pytest.fixture(params=["native", "torch"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether native kernels serve; the test runs both ways."""
    if request.param == "torch":
        switch_off(monkeypatch)
        return False
    request.getfixturevalue("native_library")
    return True
