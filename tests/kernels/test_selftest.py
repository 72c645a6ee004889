from __future__ import annotations

import pytest
import torch

from afina.kernels import lora_linear as lora
from afina.kernels import loss, selftest
from afina.kernels.cpu import native
from afina.kernels.selftest import self_test

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


@pytest.mark.parametrize("there", [True, False])
def test_the_kernels_in_triton_are_tried_on_a_gpu_where_triton_is(there, monkeypatch):
    monkeypatch.setattr(loss, "has_triton", lambda: there)
    kernels = [k for k in selftest._others(torch.device("cuda")) if "Triton" in k.name]
    assert {k.off for k in kernels} == {"" if there else "Triton is not installed"}
    assert len(kernels) == 3
