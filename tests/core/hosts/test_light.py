"""Modules of which a model gets hundreds."""

from __future__ import annotations

import torch
from torch import nn

from afina.core.hosts.light import LightModule


class Thing(LightModule):
    kind = "thing"

    def __init__(self) -> None:
        super().__init__()
        self.hold(plain=1)

    @property
    def size(self) -> int:
        return self.plain

    @size.setter
    def size(self, value: int) -> None:
        self.plain = value


def test_plain_values_are_attributes_and_no_part_of_the_state() -> None:
    thing = Thing()
    assert thing.plain == 1
    thing.plain, thing.new, thing.kind = 2, "x", "other"
    assert (thing.plain, thing.new, thing.kind, Thing.kind) == (2, "x", "other", "thing")
    thing.size = 5
    assert (thing.plain, "size" in vars(thing)) == (5, False)
    assert thing.state_dict() == {}


def test_parameters_modules_and_buffers_are_registered_as_torch_does() -> None:
    thing = Thing()
    thing.weight, thing.inner = nn.Parameter(torch.ones(2)), nn.Linear(1, 1)
    thing.plain = nn.Parameter(torch.zeros(1))  # takes the place of a plain value
    thing.register_buffer("mask", torch.ones(3))
    assert {"weight", "plain", "inner.weight", "inner.bias", "mask"} == thing.state_dict().keys()
    thing.mask = torch.zeros(3)
    assert not thing.state_dict()["mask"].any()
    thing.weight, thing.inner, thing.mask = None, None, None
    assert (thing.weight, thing.inner, thing.mask) == (None, None, None)
    assert thing.state_dict().keys() == {"plain"}
    assert "weight" in thing._parameters
    assert "inner" in thing._modules
    assert "mask" in thing._buffers
    thing._buffers = {}
    assert thing._buffers == {}
