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


def test_several_values_are_copied_and_shown_by_their_names() -> None:
    found = Several({"weight": (SimpleNamespace(w=3), "w")})
    assert repr(found) == "Several(weight)"
    assert list(found.parameters()) == []
    assert copy.deepcopy(found).weight == 3
    with pytest.raises(ConfigError, match="expected: weight"):
        found.bias = 1


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
