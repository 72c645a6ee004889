"""Fixtures of the tests of the core."""

from __future__ import annotations

from pathlib import Path

import pytest

from .tiny import trained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good adapter on disk."""
    trained().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"
