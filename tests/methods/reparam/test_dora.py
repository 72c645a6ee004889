"""DoRA's kept norms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import afina
from afina.methods.reparam.dora import Dora

from ...core.tiny import config, inputs, mlp, nudge


def dora() -> afina.PeftModel:
    return nudge(afina.get_peft_model(mlp(), config(use_dora=True, lora_dropout=0.1))).eval()


def norms_computed(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many norms a call computes."""
    count = 0

    def counting(self: Dora, *parts: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return own(self, *parts)

    with monkeypatch.context() as patched:
        for name in ("_quick_norm", "_norm"):
            own = getattr(Dora, name)
            patched.setattr(Dora, name, counting)
            model(inputs())
            patched.setattr(Dora, name, own)
    return count


def test_norms_are_kept_inside_the_context_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = dora()
    plain, layers = model(inputs()), 6
    assert norms_computed(model, monkeypatch) == layers
    with afina.DoraCaching():
        assert torch.equal(model(inputs()), plain)
        assert norms_computed(model, monkeypatch) == 0
        assert torch.equal(model(inputs()), plain)
        model.train()
        assert norms_computed(model, monkeypatch) > 0
        model.eval()
    assert norms_computed(model, monkeypatch) == layers
    afina.DoraCaching()(enabled=True)
    model(inputs())
    assert norms_computed(model, monkeypatch) == 0
    afina.DoraCaching()(enabled=False)
    assert norms_computed(model, monkeypatch) == layers


@pytest.mark.parametrize("change", ["adapter", "base", "scaling", "dtype"])
def test_what_changed_is_computed_anew(change: str) -> None:
    model = dora()
    with afina.DoraCaching():
        before = model(inputs())
        host = model.base_model.model.layers[0]["up"]
        with torch.no_grad():
            if change == "adapter":
                host.lora_A["default"].weight.add_(1)
            elif change == "base":
                host.base_layer.weight.mul_(2)
            elif change == "scaling":
                host.adapters["default"].scaling = 9.0
            else:
                model.double()
        given = inputs().double() if change == "dtype" else inputs()
        out = model(given)
        assert not torch.equal(out.float(), before) or change == "dtype"
        fresh = copy.deepcopy(model)
    assert torch.allclose(fresh(given), out, atol=1e-6)


def test_the_reference_has_the_magnitude_under_its_name() -> None:
    layer = dora().base_model.model.layers[0]["up"]
    assert layer.lora_magnitude_vector["default"].weight is layer.adapters["default"].lora_magnitude_vector
