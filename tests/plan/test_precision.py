from __future__ import annotations

import pytest
import torch

from afina.devices.found import Device
from afina.plan import precision


@pytest.mark.parametrize(("fast", "dtype"), [(0.1, "bfloat16"), (0.7, "bfloat16"), (0.8, "float32"), (3.0, "float32")])
def test_bfloat16_is_chosen_where_it_is_measured_to_be_clearly_faster(monkeypatch, fast, dtype):
    monkeypatch.setattr(precision, "product_seconds", lambda kind, *rest: fast if kind is torch.bfloat16 else 1.0)
    choice = precision.choose_dtype(Device("cpu", "a processor", bfloat16=True))
    assert choice.dtype == dtype
    assert f"{1 / fast:.1f} times as fast" in choice.reason


def test_the_measurement_runs_here():
    assert precision.choose_dtype(size=64, rounds=1).dtype in ("float32", "bfloat16")


@pytest.mark.parametrize(
    ("device", "dtype", "words"),
    [
        (Device("cuda:0", "NVIDIA H100", bfloat16=True), "bfloat16", "NVIDIA H100 computes in it"),
        (Device("cuda:0", "Tesla T4", bfloat16=False), "float16", "Tesla T4 has no instructions for bfloat16;"),
        (Device("mps", "Apple GPU", bfloat16=False), "float32", "Apple GPU has no instructions for bfloat16"),
        (Device("cpu", "Core i5", bfloat16=False), "float32", "Core i5 has no instructions for bfloat16"),
    ],
)  # fmt: skip
def test_what_is_known_of_a_device_decides_unmeasured(device, dtype, words, monkeypatch):
    monkeypatch.delattr(precision, "product_seconds")
    choice = precision.choose_dtype(device)
    assert choice.dtype == dtype
    assert choice.reason.startswith(words)


def test_an_emulated_bfloat16_is_not_waited_for(monkeypatch):
    clock = iter(range(0, 100, 3))
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(clock))
    assert precision.product_seconds(torch.float32, "cpu", 8, 50) == 3
    assert next(clock) == 9  # after one round of the fifty
