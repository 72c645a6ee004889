from __future__ import annotations

import pytest
import torch

from afina.devices import memory_use as memory


@pytest.fixture
def gpu(monkeypatch):
    """What torch would answer for a GPU."""
    reset = []
    for name, value in {"mem_get_info": (60, 100), "memory_reserved": 30, "memory_allocated": 10,
                        "max_memory_allocated": 25}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    return reset


@pytest.mark.parametrize("device", ["cuda:1", torch.device("cuda:1")])
def test_a_gpu_is_asked_for_its_own_memory(gpu, device):
    assert memory.used_bytes(device) == 30
    assert memory.free_bytes(device) == 60 + 30 - 10  # what torch holds and does not use is free for it
    assert memory.peak_bytes(device) == 25
    memory.reset_peak(device)
    assert gpu == [device]


def test_a_processor_has_the_machines_memory_and_the_processs_own(gpu):
    kib = memory.resident_kib()
    block = torch.ones(2**24)
    assert memory.used_bytes("cpu") - kib * 1024 > 0.9 * block.nbytes
    assert memory.peak_bytes("cpu") >= memory.used_bytes("cpu") * 0.99
    assert 0 < memory.free_bytes("cpu") < memory.total_bytes()
    memory.reset_peak("cpu")
    assert not gpu


def test_a_device_that_keeps_no_record_has_no_free_memory_to_tell():
    assert memory.free_bytes("meta") is None
