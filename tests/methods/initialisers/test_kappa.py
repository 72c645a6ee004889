from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

import afina
from afina.errors import ConfigError


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj, self.down_proj = (nn.Parameter(torch.randn(3, 4, 6)) for _ in range(2))


class Net(nn.Module):
    def __init__(self, experts=True):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(5, n) for n in (3, 5, 7, 9, 11))
        self.experts = Experts() if experts else nn.Identity()


@pytest.mark.parametrize("options", [{}, {"top_p": 0.7}, {"top_p": 1.0, "max_dim_size_to_analyze": 7}], ids=str)
@pytest.mark.parametrize("experts", [True, False])
def test_the_same_layers_are_chosen_as_in_the_reference(experts, options):
    net = Net(experts)
    found = afina.find_kappa_target_modules(net, show_progress=False, **options)
    assert found == peft.find_kappa_target_modules(net, show_progress=False, **options)
    assert found["target_modules"]
    assert bool(found["target_parameters"]) == experts


def test_the_best_conditioned_layer_comes_first_and_a_config_takes_it():
    net = Net()
    with torch.no_grad():
        net.layers[1].weight.copy_(torch.eye(5))
    found = afina.find_kappa_target_modules(net, show_progress=False)
    assert found["target_modules"] == ["layers.1"]
    model = afina.inject_adapter_in_model(afina.LoraConfig(**found), net)
    assert model.layers[1].lora_A["default"].weight.shape == (8, 5)


def test_no_share_is_refused():
    with pytest.raises(ConfigError, match="top_p"):
        afina.find_kappa_target_modules(Net(), top_p=20)


@pytest.mark.parametrize("options", [{"top_p": 0.0}, {"top_p": 5}, {"num_modules": -1}], ids=str)
def test_choices_that_mean_nothing_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        afina.KappaTuneSelector(Net(), show_progress=False).get_best_targets(**options)


@pytest.mark.parametrize("options", [{"num_modules": 2}, {"top_p": 0.5}, {"threshold": 4.0}, {}], ids=str)
def test_one_measurement_serves_choices_as_in_the_reference(options):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(8, 12) for _ in range(5)))
    theirs = peft.helpers.KappaTuneSelector(model, show_progress=False)
    ours = afina.KappaTuneSelector(model, show_progress=False)
    assert ours.get_best_targets(**options) == theirs.get_best_targets(**options)
    assert ours.get_best_target_parameters(**options) == []
