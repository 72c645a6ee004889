"""Values under other names than their own."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from afina.core.by_name import Places, Several, assign
from afina.errors import ConfigError


def test_places_are_read_where_the_values_are_now() -> None:
    owner, places = SimpleNamespace(a=1), Places()
    places.put("x", owner, "a")
    places.answer("y", 7)
    owner.a = 2
    assert places == {"x": 2, "y": 7}
    assert (places.x, places.y, len(places), list(places)) == (2, 7, 2, ["x", "y"])
    assert repr(places) == "{'x': 2, 'y': 7}"
    assert not hasattr(places, "z")
    assert not hasattr(places, "_z")
    with pytest.raises(KeyError):
        places["z"]


def test_places_are_assigned_where_the_values_are() -> None:
    owner, places = SimpleNamespace(a=1), Places()
    places.put("x", owner, "a")
    places.answer("y", 7)
    places.update({"x": 4})
    assert owner.a == 4
    for name in ("y", "z"):
        with pytest.raises(ConfigError, match="nothing can be put here"):
            places[name] = 3
    with pytest.raises(ConfigError, match="cannot be deleted"):
        places.pop("x")


def test_parameters_of_places_are_named_as_in_torchs_containers() -> None:
    layer, places = nn.Linear(2, 3), Places()
    places.put("x", layer, "weight", "weight")
    places.put("x", layer, "bias", "bias")
    places.put("y", layer, "bias")
    places.answer("z", 7)
    assert dict(places.named_parameters()) == {"x.weight": layer.weight, "x.bias": layer.bias, "y": layer.bias}
    assert len(list(places.parameters())) == 3


def test_several_values_are_a_linear_layer_that_holds_them() -> None:
    layer, x = nn.Linear(2, 3), torch.ones(4, 2)
    found = Several({"weight": (layer, "weight"), "bias": (layer, "bias")})
    assert torch.equal(found(x), layer(x))
    assert (found.in_features, found.out_features) == (2, 3)
    assert found.weight is layer.weight
    found.requires_grad_(False)
    assert not layer.bias.requires_grad
    found.weight = torch.zeros(3, 2)
    assert layer.weight.sum() == 0
    assert found.weight is layer.weight
    assert set(copy.deepcopy(found).state_dict()) == {"weight", "bias"}


def test_convolution_is_not_called_by_itself() -> None:
    conv = nn.Conv1d(2, 3, 1, bias=False)
    with pytest.raises(ConfigError, match="only a matrix"):
        Several({"weight": (conv, "weight")})(torch.ones(1, 2, 4))


def test_plain_tensor_in_a_parameters_place_trains_as_that_did() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    for name, trains in (("weight", False), ("bias", True)):
        assign(layer, name, torch.ones_like(getattr(layer, name)))
        assert isinstance(getattr(layer, name), nn.Parameter)
        assert getattr(layer, name).requires_grad == trains
        assert getattr(layer, name).min() == 1
    with pytest.raises(ConfigError, match="same shape"):
        assign(layer, "bias", 3.0)
