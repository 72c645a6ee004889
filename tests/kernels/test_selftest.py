from __future__ import annotations

import dataclasses

import pytest
import torch

from afina.kernels import lora_linear as lora
from afina.kernels import loss, selftest
from afina.kernels.cpu import native
from afina.kernels.selftest import self_test

from .cuda.test_varlen import formula

CPU = torch.device("cpu")


def by_name(device=CPU):
    return {check.kernel: check for check in self_test(device)}


def test_every_kernel_that_is_on_here_is_its_formula():
    found = by_name()
    assert not [c for c in found.values() if c.state == "wrong"]
    assert all(c.error <= c.limit for c in found.values() if c.state == "right")
    in_cpp = {c.state for name, c in found.items() if name.endswith(" in C++") and "attention" not in name}
    assert in_cpp == {"off" if native.library() is None else "right"}


def test_a_kernel_with_another_formula_is_found(monkeypatch):
    real = selftest.lora_linear
    monkeypatch.setattr(selftest, "lora_linear", lambda x, w, bias, a, b, s: real(x, w, bias, a, b, 1.01 * s))
    check = by_name()["LoRA with its frozen layer"]
    assert (check.state, check.why) == ("wrong", "it is not its formula here")
    assert check.error > 1e-3


def test_a_wrong_gradient_alone_is_found(monkeypatch):
    real = lora._factor_gradients
    monkeypatch.setattr(lora, "_factor_gradients", lambda *a: (real(*a)[0], 1.01 * real(*a)[1]))
    assert by_name()["LoRA with its frozen layer"].state == "wrong"


def test_a_loss_that_is_not_a_number_is_found(monkeypatch):
    monkeypatch.setattr(loss, "linear_cross_entropy", lambda x, *a, **k: x.sum() * float("nan"))
    check = by_name()["loss without logits, in chunks"]
    assert (check.state, check.error) == ("wrong", float("inf"))


def test_a_kernel_that_fails_is_wrong_and_says_why(monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("no kernel image\nfor this device")

    monkeypatch.setattr(selftest, "short_attention", fails)
    check = next(c for name, c in by_name().items() if name.startswith("attention"))
    assert (check.state, check.error, check.why) == ("wrong", None, "RuntimeError: no kernel image")


def test_what_is_for_processors_is_off_elsewhere():
    """The device without data stands for a GPU; what serves everywhere cannot run on it."""
    states = {name: c.state for name, c in by_name(torch.device("meta")).items()}
    assert {s for n, s in states.items() if "C++" in n or "oneDNN" in n or "blocks" in n} == {"off"}


@pytest.fixture(autouse=True)
def _ampere(monkeypatch):
    """What a GPU would answer."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))


@pytest.mark.parametrize("there", [True, False])
def test_the_kernels_in_triton_are_tried_on_a_gpu_where_triton_is(there, monkeypatch):
    monkeypatch.setattr(loss, "has_triton", lambda: there)
    kernels = [k for k in selftest._others(torch.device("cuda")) if "Triton" in k.name]
    assert {k.off for k in kernels} == {"" if there else "Triton is not installed"}
    assert len(kernels) == 3


@pytest.mark.parametrize("bits", ["4", "8"])
def test_layers_in_few_bits_are_tried_on_a_gpu_and_are_their_formula(bits, monkeypatch, writes_where_it_is_told):
    there = {k.name: k for k in selftest._others(torch.device("cuda")) if "bits" in k.name}
    assert {k.off for k in there.values()} == {""}
    here = next(k for k in selftest._others(CPU) if f"in {bits} bits" in k.name)
    assert selftest._check(here, CPU).why == "for NVIDIA and AMD GPUs"
    found = selftest._check(dataclasses.replace(here, off=""), CPU)
    assert (found.state, found.why) == ("right", "")
    wrong = dataclasses.replace(here, off="", kernel=lambda x, a, b: here.kernel(x, a, 1.01 * b))
    assert selftest._check(wrong, CPU).state == "wrong"


def test_attention_by_lengths_is_tried_where_it_may_be_and_is_its_formula(monkeypatch):
    from torch.nn.attention import varlen

    for capability, why in (((7, 5), "for NVIDIA GPUs from Ampere on"), ((8, 0), "")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        kernel = next(k for k in selftest._others(torch.device("cuda")) if "lengths" in k.name)
        assert kernel.off == why
    monkeypatch.setattr(varlen, "varlen_attn", formula([]))
    assert selftest._check(kernel, CPU).state == "right"
    monkeypatch.setattr(selftest, "_STARTS", (0, 40))
    wrong = dataclasses.replace(kernel, formula=lambda q, k, v: selftest._each_row(q, k, v.flip(0)))
    assert selftest._check(wrong, CPU).state == "wrong"
