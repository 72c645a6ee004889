from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from afina.devices import found as module
from afina.devices.found import Device, found, processor
from afina.devices.place import place


def test_the_processor_is_always_there_and_last():
    assert found()[-1].name == "cpu"
    assert found()[-1].total >= found()[-1].free > 0


@pytest.mark.parametrize(
    ("flags", "has"), [("fma avx2 avx512_bf16", True), ("fma avx2 avx512f", False), ("fp asimd bf16", True), ("", None)]
)
def test_bfloat16_of_a_processor_is_read_off_its_flags(flags, has, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    key = "Features" if "asimd" in flags else "flags"
    file.write_text(f"processor : 0\nmodel name : some processor\n{key} : {flags}\n\nprocessor : 1\nflags : bf16\n")
    monkeypatch.setattr(module, "_CPUINFO", file)
    monkeypatch.setattr(module.sys, "platform", "linux")
    assert (processor().title, processor().bfloat16) == ("some processor", has)


def test_cuda_devices_are_asked_for_what_they_have(monkeypatch):
    """A machine with two GPUs: what torch answers, and nothing else, is in `Device`."""
    gpu = torch.cuda
    here = []

    class Inside:
        def __init__(self, number):
            self.number = number

        def __enter__(self):
            here.append(self.number)

        def __exit__(self, *_):
            here.pop()

    monkeypatch.setattr(gpu, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "device_count", lambda: 2)
    monkeypatch.setattr(gpu, "device", Inside)
    monkeypatch.setattr(gpu, "get_device_properties", lambda n: SimpleNamespace(name=f"GPU {n}", total_memory=100))
    monkeypatch.setattr(gpu, "is_bf16_supported", lambda including_emulation: here == [1] and not including_emulation)
    monkeypatch.setattr(gpu, "get_device_capability", lambda n: (7 + n, 5 * n))
    monkeypatch.setattr(gpu, "mem_get_info", lambda d: (60, 100))
    monkeypatch.setattr(gpu, "memory_reserved", lambda d: 30)
    monkeypatch.setattr(gpu, "memory_allocated", lambda d: 10)
    first, second, cpu = found()
    assert first == Device("cuda:0", "GPU 0", 100, 80, False, (7, 0))
    assert second == Device("cuda:1", "GPU 1", 100, 80, True, (8, 5))
    assert (cpu.name, place().name) == ("cpu", "cuda:0")


def test_a_gpu_that_this_torch_cannot_use_is_told(tmp_path, monkeypatch):
    driver = tmp_path / "version"
    monkeypatch.setattr(module, "_NVIDIA", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert module.out_of_reach() == ""
    driver.touch()
    assert "torch is built without CUDA" in module.out_of_reach()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "finds no GPU through it" in module.out_of_reach()
