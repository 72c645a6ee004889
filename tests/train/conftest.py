from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _quiet_and_alone(tmp_path, monkeypatch):
    """A cache of its own, no hub, and one thread."""
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
