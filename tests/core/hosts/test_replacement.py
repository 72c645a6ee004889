"""Trained copies of modules, and heads that share the weight of an adapted table."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from afina.core.hosts.adapter import Site
from afina.core.hosts.host import Host
from afina.core.hosts.replacement import Replacement
from afina.core.hosts.tied import Tied
from afina.core.layers.recognise import base_weight
from afina.errors import NumericError

TIES = SimpleNamespace(ensure_weight_tying=True)


def site(module: nn.Module, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Site:
    return Site(base_weight(module), "x", dtype, torch.device(device))


class Norm(nn.Module):
    """A module with a buffer that no file holds, called by name."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((3,), 2.0))
        self.register_parameter("shift", None)
        self.register_buffer("eps", torch.tensor(0.5), persistent=False)

    def forward(self, states: torch.Tensor, more: float = 0.0) -> torch.Tensor:
        assert states.dtype == self.scale.dtype
        return states * self.scale + self.eps + more


def test_copy_trains_and_the_layer_does_not_change() -> None:
    layer = nn.Linear(3, 2).requires_grad_(False)
    adapter = Replacement(site(layer, torch.float64), None)
    assert adapter.is_weight
    assert not adapter.with_attention_output  # which is in the copy of the whole attention
    assert {p.dtype for p in adapter.parameters()} == {torch.float64}
    assert all(p.requires_grad for p in adapter.parameters())
    assert torch.equal(adapter.copy.weight.float(), layer.weight)
    adapter.copy.weight.data.fill_(1)
    assert not (layer.weight == 1).any()
    assert adapter.weight is adapter.copy.weight
    with pytest.raises(AttributeError):
        adapter.other
    weight, bias = adapter.merged(layer.weight, None)
    assert weight is adapter.copy.weight
    assert bias is adapter.copy.bias


def test_another_module_than_the_sites_can_be_copied() -> None:
    other = nn.Linear(3, 2)
    assert torch.equal(Replacement(site(nn.Linear(3, 2)), None, other).copy.weight, other.weight)


def test_copy_without_memory_keeps_its_buffers() -> None:
    adapter = Replacement(site(Norm(), device="meta"), None)
    assert not adapter.is_weight
    assert adapter.copy.scale.is_meta
    assert adapter.copy.eps == 0.5
    assert adapter.copy.shift is None


def test_whole_numbers_are_no_dtype_for_a_copy() -> None:
    assert Replacement(site(nn.Linear(2, 2), torch.int8), None).dtype == torch.float32


@pytest.mark.parametrize("keyword", [False, True])
def test_copy_runs_as_the_module_was_called_in_its_own_dtype(keyword: bool) -> None:
    host = Host(Norm())
    adapter: Any = Replacement(site(host.base_layer, torch.float64), None)
    adapter.copy.scale.data.fill_(3)
    host.add("a", adapter)
    x = torch.ones(2, 3)
    assert torch.equal(host(x), x * 2.5)
    host.set_active(("a",))
    found = host(states=x, more=1.0) if keyword else host(x, 1.0)
    assert torch.equal(found, x * 4.5)
    assert found.dtype == torch.float32


def test_state_on_disk_is_the_modules() -> None:
    adapter, other = (Replacement(site(nn.Linear(3, 2)), None) for _ in range(2))
    state = adapter.disk_state(adapter.state_dict())
    assert state.keys() == {"weight", "bias"}
    other.load_disk_state(state)
    assert torch.equal(other.copy.weight, adapter.copy.weight)


def test_copy_that_is_not_finite_is_refused_by_name() -> None:
    adapter = Replacement(site(nn.Linear(3, 2)), None)
    adapter.refuse_not_finite()
    adapter.copy.bias.data[1] = float("inf")
    with pytest.raises(NumericError, match="bias"):
        adapter.refuse_not_finite()


def test_copy_of_a_module_with_hosts_in_it_has_the_layers_with_their_original_bits() -> None:
    inner = nn.Linear(3, 3)
    host = Host(Host(inner))
    original = inner.weight.clone()
    adapter = Replacement(site(inner), None)
    adapter.copy.weight.data.fill_(7)
    host.base_layer.add("a", adapter)
    host.base_layer.set_active(("a",))
    host.base_layer.merge()
    assert (inner.weight == 7).all()
    block = nn.Sequential(host, nn.ReLU())
    copy = Replacement(site(block), None).copy
    assert [type(m) for m in copy] == [nn.Linear, nn.ReLU]
    assert torch.equal(copy[0].weight, original)
    assert (inner.weight == 7).all()


def test_head_takes_the_copy_of_the_table_whose_weight_it_shares_if_asked() -> None:
    table, head = nn.Embedding(5, 3), nn.Linear(3, 5)
    assert Replacement(site(table), None).tied(site(head)) is None
    source = Replacement(site(table, torch.float64), TIES)
    tied: Any = source.tied(site(head))
    assert isinstance(tied, Tied)
    assert tied.dtype == torch.float64
    assert list(tied.parameters()) == []
    source.copy.weight.data.normal_()
    weight, bias = tied.merged(head.weight, head.bias)
    assert torch.equal(weight, source.copy.weight)
    assert bias is head.bias


def test_files_have_a_tied_copy_twice() -> None:
    table, head = nn.Embedding(5, 3), nn.Linear(3, 5)
    tied: Any = Replacement(site(table), TIES).tied(site(head))
    assert torch.equal(tied.disk_state({})["weight"], table.weight)
    assert tied.disk_shapes({}) == {"weight": (5, 3)}


def test_a_copy_answers_for_the_module_that_it_is_a_copy_of() -> None:
    adapter = Replacement(site(nn.BatchNorm1d(3)), None)
    adapter.copy.num_batches_tracked.fill_(7)
    assert adapter.num_batches_tracked == 7
    assert adapter.num_features == 3
    assert adapter.weight is adapter.copy.weight
    with pytest.raises(AttributeError):
        adapter.nothing
