"""A layer with adapters under the reference's names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.pytorch_utils import Conv1D

import afina
from afina.core.hosts.host import Host, hosts
from afina.errors import CheckpointError

from ..tiny import config, mlp, nudge, trained


@pytest.fixture
def host() -> Any:
    """The first layer, with two LoRA and biases."""
    model = trained(bias="all")
    model.add_adapter("second", config(r=4))
    return model.get_base_model().layers[0]["up"]


def learns(host: Host) -> dict[str, set[bool]]:
    out = {n: {p.requires_grad for p in host.adapter(n).parameters()} for n in ("default", "second")}  # type: ignore[union-attr]
    return {**out, "bias": {b.requires_grad for b in host.biases.values()}}


def test_layer_tells_its_adapters(host: Any) -> None:
    assert host.active_adapters == host.active_adapter == ["default"]
    assert host.merged_adapters == []
    host.merge()
    assert host.merged_adapters == ["default"]
    assert host.disable_adapters is False
    host.enable_adapters(False)
    assert host.disable_adapters is True
    assert set(host.adapter_layer_names) == {"lora_A", "lora_B"}
    assert list(host.other_param_names) == sorted(host.other_param_names)
    assert {"r", "lora_alpha", "scaling"} <= set(host.other_param_names)


def test_layer_whose_method_has_no_prefix_tells_where_it_holds_adapters() -> None:
    host = trained(modules_to_save=["head"]).get_base_model().head
    assert host.adapter_layer_names == ("modules_to_save",)


def test_adapters_set_on_one_layer_are_those_that_train_there(host: Any) -> None:
    host.set_adapter("second")
    assert host.active == ("second",)
    assert learns(host) == {"default": {False}, "second": {True}, "bias": {False}}
    host.set_adapter(["second", "default"])
    assert host.active == ("second", "default")
    assert learns(host) == {"default": {True}, "second": {True}, "bias": {True}}
    host.set_adapter("default", inference_mode=True)
    assert host.active == ("default",)
    assert learns(host) == {"default": {False}, "second": {False}, "bias": {False}}


def test_adapters_of_one_layer_are_frozen_and_thawed(host: Any) -> None:
    host.set_requires_grad("second")
    assert learns(host) == {"default": {True}, "second": {True}, "bias": {True}}
    host.set_requires_grad(["default", "nowhere"], False)
    assert learns(host) == {"default": {False}, "second": {True}, "bias": {False}}
    assert host.active == ("default",)


def test_only_a_change_of_a_weight_can_become_a_lora(host: Any) -> None:
    assert host.supports_lora_conversion()
    assert host.supports_lora_conversion("second")
    assert not host.supports_lora_conversion("nowhere")
    model = afina.get_peft_model(mlp(), afina.BottleneckConfig(target_modules=["up"]))
    assert not model.get_base_model().layers[0]["up"].supports_lora_conversion()


def test_adapter_is_taken_from_one_layer(host: Any) -> None:
    host.delete_adapter("second")
    assert host.names() == ["default"]


def test_keys_of_a_file_are_those_of_the_layers_state(host: Any) -> None:
    found = host.adapter_state_dict_load_map("default")
    assert found == {
        "lora_A.weight": "adapters.default.lora_A", "lora_B.weight": "adapters.default.lora_B",
        "base_layer.bias": "biases.default",
    }  # fmt: skip
    assert set(found.values()) <= host.state_dict().keys()
    assert host.adapter_state_dict_load_map("nowhere") == {}
    bare = next(h for n, h in hosts(trained(bias="all")) if n.endswith("head"))
    assert bare.adapter_state_dict_load_map("default") == {"bias": "biases.default"}
    host.adapter("second").loaded_whole = True
    assert host.adapter_state_dict_load_map("second") == {}


def test_file_that_holds_what_is_computed_cannot_be_loaded_by_renaming(host: Any) -> None:
    adapter = host.adapter("default")
    adapter.disk_state = lambda own: {"lora_A.weight": own["lora_A"] * 2}
    with pytest.raises(CheckpointError, match="default"):
        host.adapter_state_dict_load_map("default")


def test_scaling_is_set_for_one_and_multiplied_and_divided_for_the_active(host: Any) -> None:
    first, second = host.adapter("default"), host.adapter("second")
    start = (first.scaling, second.scaling)
    assert start == (1.5, 0.75)
    host.set_scale("second", 4.0)
    host.set_scale("nowhere", 4.0)
    assert (first.scaling, second.scaling) == (1.5, 3.0)
    host.scale_layer(3.0)
    assert (first.scaling, second.scaling) == (4.5, 3.0)
    host.unscale_layer(2.0)
    assert (first.scaling, second.scaling) == (2.25, 3.0)
    host.unscale_layer()
    assert (first.scaling, second.scaling) == (1.5, 3.0)


def test_method_without_a_scaling_is_left_alone() -> None:
    model = afina.get_peft_model(mlp(), afina.IA3Config(target_modules=["up"], feedforward_modules=[]))
    layer = model.get_base_model().layers[0]["up"]
    before = torch.clone(next(layer.adapter("default").parameters()))
    layer.set_scale("default", 2.0)
    layer.scale_layer(2.0)
    layer.unscale_layer()
    assert torch.equal(next(layer.adapter("default").parameters()), before)
    assert not hasattr(layer.adapter("default"), "scaling")


def test_an_update_that_is_asked_for_in_training_is_not_dropped_out() -> None:
    model = afina.get_peft_model(mlp(), afina.LoKrConfig(target_modules=["up"], rank_dropout=0.5, module_dropout=0.5))
    nudge(model)
    layer = model.get_base_model().layers[0]["up"]
    wanted = layer.get_delta_weight("default")
    assert wanted.any()
    model.train()
    for _ in range(8):
        assert torch.equal(layer.get_delta_weight("default"), wanted)
    assert layer.adapter("default").training


@pytest.mark.parametrize(("layer", "sizes"), [
    (torch.nn.Linear(3, 5), (3, 5)),
    (torch.nn.Embedding(7, 4), (7, 4)),
    (torch.nn.Conv2d(4, 6, 3, groups=2), (4, 6)),
    (Conv1D(5, 3), (3, 5)),
    (torch.nn.MultiheadAttention(4, 2), (4, 12)),
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_every_kind_of_layer_tells_its_sizes(layer: torch.nn.Module, sizes: tuple[int, int]) -> None:
    model = afina.get_peft_model(torch.nn.Sequential(layer), afina.LoraConfig(r=2, target_modules=["0"]))
    assert (model.base_model.model[0].in_features, model.base_model.model[0].out_features) == sizes


def test_what_has_no_sizes_has_none_with_adapters_either() -> None:
    model = afina.get_peft_model(torch.nn.Sequential(torch.nn.LayerNorm(4)), afina.LNTuningConfig(target_modules=["0"]))
    assert not hasattr(model.base_model.model[0], "in_features")
