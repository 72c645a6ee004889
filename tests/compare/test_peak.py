from __future__ import annotations

import sys

import pytest
import torch

from afina.compare import peak as module
from afina.compare.peak import Peak


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only the peak of the process's whole life is known")
def test_peak_counts_what_was_taken_after_the_start_even_if_given_back():
    base = torch.nn.Linear(64, 64)
    before = torch.ones(40 * 2**18)  # 40 MiB that are gone by the start
    del before
    peak = Peak(base)
    peak.start()
    held = torch.ones(100 * 2**18)
    del held
    assert 95 < peak.above_base_mb() < 130


@pytest.mark.skipif(sys.platform != "linux", reason="as above")
def test_base_does_not_count():
    base = torch.nn.Linear(4096, 4096)
    peak = Peak(base)
    peak.start()
    assert base(torch.ones(1, 4096)).shape == (1, 4096)
    assert peak.above_base_mb() < 32


def test_on_a_gpu_the_peak_is_the_devices_own(monkeypatch):
    """The device without data stands for a GPU."""
    reset = []
    monkeypatch.setattr(module, "reset_peak", reset.append)
    monkeypatch.setattr(module, "peak_bytes", lambda device: 7 * 2**20)
    base = torch.nn.Linear(2**9, 2**9, bias=False, device="meta")
    peak = Peak(base)
    peak.start()
    assert reset == [torch.device("meta")]
    assert peak.above_base_mb() == 6.0
