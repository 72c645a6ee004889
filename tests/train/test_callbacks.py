from __future__ import annotations

import pytest

from afina.errors import NumericError


def guarded_step(poison):
    """What the guard says to one step of a small model."""
    from types import SimpleNamespace

    import torch

    from afina.compat import stand_in

    stand_in()
    from afina.train.callbacks import FiniteGuard

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, x):
            return SimpleNamespace(loss=(self.weight * x).sum())

    model = Model()
    guard = FiniteGuard(model)
    guard.on_step_begin(None, SimpleNamespace(global_step=0), None)
    model(torch.tensor([1.0, float("inf") if poison == "loss" else 1.0, 2.0])).loss.backward()
    if poison == "gradient":
        model.weight.grad[1] = float("nan")
    if poison == "nothing":
        model.weight.grad.zero_()
    guard.on_pre_optimizer_step(None, None, None)
    return "passed"


def test_finite_step_passes(child):
    assert child(guarded_step, None) == "passed"


@pytest.mark.parametrize(
    ("poison", "words"),
    [
        ("loss", "step 1: the loss"),
        ("gradient", "step 1, weight: the grad"),
        ("nothing", "step 1: no gradient reaches"),
    ],
)
def test_faulty_step_is_stopped_and_named(child, poison, words):
    with pytest.raises(NumericError, match=words) as caught:
        child(guarded_step, poison)
    assert len(str(caught.value).splitlines()) <= 4
