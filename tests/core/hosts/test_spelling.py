"""A layer with adapters under the reference's names."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import afina
from afina.core.hosts.held import reference_view
from afina.core.hosts.host import Host, hosts
from afina.errors import CheckpointError, ConfigError

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


def test_layer_without_the_references_names_answers_none(host: Any) -> None:
    assert reference_view({}, "lora_A") is None
    assert reference_view(host._adapters, "number") is None
    assert reference_view(host._adapters, "lora_magnitude_vector") == {}


def test_tensors_of_one_module_are_answered_together() -> None:
    layer = afina.get_peft_model(mlp(), config(lora_bias=True)).get_base_model().layers[0]["up"]
    found, adapter = layer.lora_B["default"], layer.adapter("default")
    assert found.weight is adapter.lora_B
    assert found.bias is adapter.lora_bias
    assert {id(p) for p in found.parameters()} == {id(adapter.lora_B), id(adapter.lora_bias)}
    assert not hasattr(found, "lora_B")
    x = torch.ones(3, 2)
    assert torch.equal(found(x), x @ adapter.lora_B.T + adapter.lora_bias)


def test_scaling_and_tensors_that_are_assigned_are_the_adapters(host: Any) -> None:
    before = host.get_delta_weight("default")
    host.scaling["default"] *= 2
    assert host.scaling == {"default": 3.0, "second": 0.75}
    assert torch.allclose(host.get_delta_weight("default"), 2 * before)
    host.lora_B["default"].weight = nn.Parameter(torch.ones(16, 2))
    assert host.adapter("default").lora_B.sum() == 32
    assert host.adapter("default").lora_B.requires_grad
    with pytest.raises(ConfigError, match="of its shape"):
        host.lora_B["default"].weight = nn.Parameter(torch.ones(16, 3))


@pytest.mark.parametrize("name", ["r", "lora_A"])
def test_what_cannot_be_assigned_says_so(host: Any, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be set on a layer"):
        getattr(host, name)["default"] = 3
    assert len(getattr(host, name)) == 2


def test_vectors_that_all_layers_share_are_assigned_for_all() -> None:
    model = afina.get_peft_model(mlp(), afina.VeraConfig(target_modules=["down"], r=4))
    first, last = (model.get_base_model().layers[i]["down"] for i in (0, 2))
    first.vera_A["default"] = torch.zeros_like(first.vera_A["default"])
    assert last.vera_A["default"].abs().sum() == 0
    last.vera_lambda_d["default"] = torch.full((4,), 5.0)
    assert last.vera_lambda_d.default.tolist() == [5.0] * 4
    assert last.vera_lambda_d["default"].requires_grad
    assert first.vera_lambda_d["default"].tolist() != [5.0] * 4


def test_rows_of_single_tokens_are_found_where_the_reference_has_them() -> None:
    for library in (peft, afina):
        net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
        model = library.get_peft_model(
            net, library.LoraConfig(target_modules=["1"], trainable_token_indices={"0": [2, 5]})
        )
        layer = model.base_model.model[0]
        assert layer.token_adapter.trainable_tokens_delta["default"].shape == (2, 4)
        assert not hasattr(model.base_model.model[1], "token_adapter")


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
