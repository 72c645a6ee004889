from __future__ import annotations

import signal

import pytest
import torch

from . import tiny, tiny_images, tiny_pipelines, tiny_sounds


@pytest.fixture(autouse=True)
def _quiet_and_alone(tmp_path, monkeypatch):
    """A cache of its own, one thread, and SIGHUP as it is in a terminal, also where `nohup` ignores it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def models(model_folder, tmp_path_factory):
    """Tiny models by family."""
    return {
        "llama": model_folder,
        "t5": tiny.write_t5(tmp_path_factory.mktemp("t5")),
        "encoder": tiny.write_encoder(tmp_path_factory.mktemp("encoder")),
        "mobilenet_v2": tiny_images.write_mobilenet_v2(tmp_path_factory.mktemp("mobilenet_v2")),
        "vit": tiny_images.write_vit(tmp_path_factory.mktemp("vit")),
        "whisper": tiny_sounds.write_whisper(tmp_path_factory.mktemp("whisper")),
        "sd": tiny_pipelines.write_sd(tmp_path_factory.mktemp("sd")),
        "idefics3": tiny_images.write_idefics3(tmp_path_factory.mktemp("idefics3")),
    }
