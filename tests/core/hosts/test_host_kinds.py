"""Hosts whose parents read their weights, and hosts of trained copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import afina
from afina.core.hosts.adapter import Site
from afina.core.hosts.batch_rows import Rows
from afina.core.hosts.calls import entered, switched_off
from afina.core.hosts.host_kinds import ModulesToSaveWrapper, ReadHost
from afina.core.hosts.replacement import Replacement
from afina.errors import NumericError

from .test_adapter import Shift


def site(host: Any) -> Site:
    return Site(host.base, "x", torch.float32, torch.device("cpu"))


@pytest.fixture
def read() -> ReadHost:
    """A layer that is read, with adapters "a" (ΔW = .5) and "b" (ΔW = 2) and a bias of "a"."""
    host = ReadHost(nn.Linear(3, 2).bfloat16())
    for name, by in (("a", 0.5), ("b", 2.0)):
        adapter = Shift(site(host), None)
        adapter.by.data.fill_(by)
        host.add(name, adapter)
    host.add_bias("a", nn.Parameter(torch.full((2,), 7.0)))
    return host


def added(host: ReadHost) -> float:
    """What adapters add to the weight that is read."""
    return round((host.weight.float() - host.base_layer.weight.float()).mean().item(), 1)


def test_read_weight_and_bias_are_those_with_the_active_adapters(read: ReadHost) -> None:
    assert not read.called
    assert read.weight is read.base_layer.weight
    assert read.bias is read.base_layer.bias
    assert read.called
    read.set_active(("a", "b"))
    assert added(read) == 2.5
    assert read.weight.dtype == read.bias.dtype == torch.bfloat16
    assert (read.bias == 7).all()
    read.set_active(("b",))
    assert added(read) == 2.0
    assert torch.equal(read.bias, read.base_layer.bias)


def test_read_weight_is_the_bases_in_calls_without_adapters(read: ReadHost) -> None:
    read.set_active(("a",))
    plain, bias = read.base_layer.weight, read.base_layer.bias
    with switched_off(read.scope):
        assert read.weight is plain
        assert read.bias is bias
    read.merge()
    assert torch.equal(read.weight, read.base_layer.weight)
    with switched_off(read.scope):
        assert read.weight is plain
    assert ReadHost(nn.Linear(2, 2, bias=False)).bias is None


def test_read_weight_is_that_of_the_rows(read: ReadHost) -> None:
    read.set_active(("a",))
    with entered(read.scope, Rows(("b", "b"))):
        assert added(read) == 2.0
        assert torch.equal(read.bias, read.base_layer.bias)
    with entered(read.scope, Rows(("a", "a"))):
        assert (read.bias == 7).all()
    with entered(read.scope, Rows(("other",))):
        assert read.weight is read.base_layer.weight
    read.enable_adapters(False)
    with entered(read.scope, Rows(("b", "b"))):
        assert added(read) == 0


@pytest.fixture
def copied() -> ModulesToSaveWrapper:
    """A layer with a trained copy "a", all of whose numbers are 3."""
    host = ModulesToSaveWrapper(nn.Linear(3, 2))
    adapter: Any = Replacement(site(host), None)
    for parameter in adapter.copy.parameters():
        parameter.data.fill_(3)
    host.add("a", adapter)
    host.set_active(("a",))
    return host


def test_copy_answers_while_it_applies(copied: Any) -> None:
    copy, base = copied.adapter("a").copy, copied.base_layer
    assert copied.original_module is base
    assert copied.weight is copy.weight
    assert copied.called
    assert copied.result() is copy
    assert copied.result(keep=False) is base
    with switched_off(copied.scope):
        assert copied.weight is base.weight
    copied.add("b", Replacement(site(copied), None))
    copied.set_active(("a", "b"))
    assert copied.result() is copied.adapter("b").copy
    copied.set_active(())
    assert copied.weight is base.weight
    assert copied.result() is base


def test_whoever_ties_weights_gets_the_originals(copied: Any) -> None:
    copied.is_tied = True
    assert copied.weight is copied.base_layer.weight
    assert not copied.called
    with copied.scope.users.calling():
        assert copied.weight is copied.adapter("a").copy.weight


def test_copy_is_not_merged_and_has_to_be_finite(copied: Any) -> None:
    before = copied.base_layer.weight.clone()
    copied.merge()
    assert torch.equal(copied.base_layer.weight, before)
    assert copied.merged == ()
    copied.adapter("a").copy.weight.data[0, 0] = float("nan")
    copied.merge(["other"])
    copied.merge([])
    with pytest.raises(NumericError):
        copied.merge()
    with pytest.raises(NumericError):
        copied.merge(["a"])


def test_trained_heads_are_hosts_of_their_own_kind() -> None:
    from ..tiny import config, mlp

    model = afina.get_peft_model(mlp(), config(modules_to_save=["head"]))
    head = model.get_base_model().head
    assert isinstance(head, ModulesToSaveWrapper)
    assert "modules_to_save.default.copy.weight" in head.state_dict()
    assert not head.is_tied
