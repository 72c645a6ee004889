"""Walking a model around its adapters."""

from __future__ import annotations

import pytest
from torch import nn

from afina.core.hosts.walk import hold_shared, outside_adapters, shared_holder

from ..tiny import mlp, trained


def test_plain_model_is_walked_as_torch_walks_it() -> None:
    model = mlp()
    assert list(outside_adapters(model)) == list(model.named_modules())


def test_adapters_are_not_entered_and_what_hosts_wrap_is() -> None:
    model = trained(modules_to_save=["head"]).get_base_model()
    names = [n for n, _ in outside_adapters(model)]
    assert "layers.0.up.base_layer" in names
    assert "head.original_module" in names
    assert not any("adapters" in n or "modules_to_save" in n for n in names)


@pytest.mark.parametrize("once", [True, False])
def test_module_in_two_places_is_met_once_or_at_each(once: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.append(model[0])
    model.add_module("gone", None)
    names = [n for n, _ in outside_adapters(model, remove_duplicate=once)]
    assert names == ["", "0", "1"] + ([] if once else ["2"])


def test_what_layers_share_is_held_under_a_free_name() -> None:
    model = nn.Sequential()
    assert shared_holder(model) is None
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    hold_shared(model, "a", one)
    hold_shared(model, "b", two)
    found = shared_holder(model)
    assert found is not None
    name, held = found
    assert (name, dict(held.items())) == ("shared", {"a": one, "b": two})
    taken = nn.Module()
    taken.shared = nn.Linear(2, 2)
    hold_shared(taken, "a", one)
    assert isinstance(taken.shared, nn.Linear)
    found = shared_holder(taken)
    assert found is not None
    assert (found[0], found[1]["a"]) == ("shared_by_adapter", one)
