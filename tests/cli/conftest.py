from __future__ import annotations

import pytest
import torch

from ..train import tiny
from ..train.child import Child


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def child():
    out = Child()
    yield out
    out.pool.shutdown()


@pytest.fixture(autouse=True)
def _quiet_and_alone(tmp_path, monkeypatch):
    """A cache of its own, no hub, and one thread."""
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
