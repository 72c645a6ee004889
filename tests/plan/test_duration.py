from __future__ import annotations

import torch
from torch import nn

from afina.plan.duration import flops_per_second, step_flops


def test_a_frozen_layer_costs_two_products_and_a_trained_one_three():
    x = torch.zeros(5, 7)

    def flops(trained):
        def build():
            model = nn.Sequential(nn.Linear(7, 11), nn.Linear(11, 13, bias=False))
            model[1].requires_grad_(trained)
            return model

        return step_flops(build, {"x": x}, lambda model, batch: model(batch["x"]).sum())

    first, second = 2 * 5 * 7 * 11, 2 * 5 * 11 * 13
    assert flops(trained=False) == 2 * first + 2 * second  # the first needs no gradient of its input
    assert flops(trained=True) == 2 * first + 3 * second


def test_the_speed_is_measured_here():
    assert flops_per_second(torch.float32) > 1e8


def test_a_torch_that_is_built_for_a_gpu_measures_the_processor_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert flops_per_second(torch.float32) > 1e8
