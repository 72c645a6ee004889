"""What adapters hold, under the reference's names on a layer."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import afina
from afina.core.hosts.adapter import Adapter, Site
from afina.core.hosts.held import reference_view, shared_view
from afina.core.hosts.host import Host
from afina.errors import ConfigError

from ..tiny import config, mlp, trained


@pytest.fixture
def host() -> Any:
    """The first layer, with two LoRA."""
    model = trained()
    model.add_adapter("second", config(r=4))
    return model.get_base_model().layers[0]["up"]


class Doubled(Adapter):
    """Two tensors of one module, and a setting."""

    disk_names: ClassVar = {"number": "lora_B.weight", "more": "lora_B.bias"}
    prefix = "lora_"
    reference_attributes = frozenset({"r"})
    r = 5

    def __init__(self, host: Host) -> None:
        super().__init__(Site(host.base, "x", torch.float32, torch.device("cpu")), None)
        self.number, self.more = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(1))


def test_layer_without_the_references_names_answers_none() -> None:
    assert reference_view({}, "lora_A") is None
    host = Host(nn.Linear(3, 2))
    host.add("a", Doubled(host))
    assert reference_view(host._adapters, "number") is None
    assert reference_view(host._adapters, "lora_C") is None
    assert reference_view(host._adapters, "r") == {"a": 5}


def test_tensors_of_one_module_are_answered_together() -> None:
    host = Host(nn.Linear(3, 2))
    adapter = Doubled(host)
    host.add("a", adapter)
    found = host.lora_B["a"]
    assert found.weight is adapter.number
    assert found.bias is adapter.more
    assert dict(host.lora_B.named_parameters()) == {"a.weight": adapter.number, "a.bias": adapter.more}


def test_what_all_layers_share_is_answered_for_each_adapter() -> None:
    assert shared_view({"a": nn.Linear(2, 2, bias=False)}, "bias") == {}
    held = nn.Linear(2, 2)
    held.register_buffer("mask", torch.ones(1))
    held.inner = nn.ModuleDict({"a": nn.ReLU()})
    assert shared_view({"a": held}, "weight") == {"a": held.weight}
    assert shared_view({"a": held}, "mask") == {"a": held.mask}
    assert shared_view({"a": held, "b": held}, "inner") == {"a": held.inner["a"], "b": held.inner}


def test_adapters_of_a_layer_are_attributes_too(host: Any) -> None:
    assert host.lora_A.default.weight is host.adapter("default").lora_A
    assert host.scaling.second == host.scaling["second"] == 0.75
    with pytest.raises(AttributeError, match="default, second"):
        host.lora_A.third


def test_factor_of_a_matrix_is_a_linear_layer(host: Any) -> None:
    factor, adapter = host.lora_A["default"], host.adapter("default")
    assert isinstance(factor, nn.Linear)
    assert (factor.out_features, factor.in_features) == tuple(adapter.lora_A.shape)
    x = torch.randn(2, factor.in_features)
    assert torch.equal(factor(x), x @ adapter.lora_A.T)
    factor.requires_grad_(False)
    assert not adapter.lora_A.requires_grad
    assert list(host.lora_A.parameters()) == [adapter.lora_A, host.adapter("second").lora_A]


def test_what_is_set_on_a_layer_reaches_its_adapter() -> None:
    host = trained().get_base_model().layers[0]["up"]
    adapter, x = host.adapter("default"), torch.randn(2, host.base_layer.in_features)
    plain, before = host.base_layer(x), host(x) - host.base_layer(x)
    host.scaling["default"] *= 2
    assert adapter.scaling == 3.0
    assert torch.allclose(host(x) - plain, before * 2, atol=1e-5)
    new = nn.Parameter(adapter.lora_B.detach() / 2)
    host.lora_B["default"].weight = new
    assert adapter.lora_B is new
    assert torch.allclose(host(x) - plain, before, atol=1e-5)
    assert not torch.allclose(before, torch.zeros_like(before))
    module = nn.Linear(*reversed(adapter.lora_B.shape), bias=False)
    host.lora_B["default"] = module
    assert adapter.lora_B is module.weight
    host.lora_dropout["default"] = nn.Dropout(1.0)
    assert torch.allclose(host.train()(x), plain)


def test_tensor_is_set_where_the_file_has_it_without_a_module() -> None:
    model = afina.get_peft_model(mlp(), afina.IA3Config(target_modules=["up"], feedforward_modules=[]))
    layer = model.get_base_model().layers[0]["up"]
    layer.ia3_l["default"] = torch.zeros_like(layer.ia3_l.default)
    assert isinstance(layer.ia3_l["default"], nn.Parameter)
    x = torch.randn(2, layer.base_layer.in_features)
    assert not layer(x).any()
    assert list(layer.ia3_l.parameters()) == [layer.adapter("default").ia3_l]


def test_what_a_layer_cannot_take_is_refused(host: Any) -> None:
    for name, key, value in (
        ("r", "default", 3),
        ("lora_A", "nowhere", nn.Linear(2, 2)),
        ("lora_A", "default", torch.zeros(2)),
    ):
        with pytest.raises(ConfigError, match=name):
            getattr(host, name)[key] = value
    factor = host.lora_A["default"]
    for value in (nn.Parameter(torch.zeros(2, 2)), None):
        with pytest.raises(ConfigError, match="shape"):
            factor.weight = value
    with pytest.raises(ConfigError, match="has"):
        factor.other = nn.Parameter(torch.zeros(1))


def test_factors_of_an_embedding_are_parameters() -> None:
    model = nn.Sequential(nn.Embedding(9, 4))
    layer = afina.get_peft_model(model, config(target_modules=["0"])).get_base_model()[0]
    adapter = layer.adapter("default")
    assert layer.lora_embedding_B.default is adapter.lora_B
    assert layer.lora_embedding_A["default"] is adapter.lora_A
    new = nn.Parameter(torch.ones_like(adapter.lora_B))
    layer.lora_embedding_B["default"] = new
    assert adapter.lora_B is new
    assert not layer.lora_B
