"""Hosts: what parents see of them, and what merging leaves."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import afina
from afina.core.hosts.host import Host, hosts
from afina.core.hosts.host_kinds import ReadHost
from afina.errors import AfinaWarning, ConfigError, MergeError, NotAWeight

from ..tiny import bits, config, inputs, mlp, nudge, same_bits, trained


def test_bias_of_a_layer_without_adapter_is_merged_disabled_and_restored() -> None:
    model = trained(bias="all")
    base, out = mlp().requires_grad_(False)(inputs()), model(inputs())
    before = bits(model)
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AfinaWarning)
            model.merge_adapter()
            model.merge_adapter()
        assert torch.allclose(model(inputs()), out, atol=1e-6)
        with model.disable_adapter():
            assert torch.equal(model(inputs()), base)
        model.unmerge_adapter()
        assert same_bits(bits(model), before)
    assert same_bits(bits(model.unload()), bits(mlp()))


def test_merging_while_disabled_shows_when_enabled_again() -> None:
    model = trained()
    out, base = model(inputs()), mlp().requires_grad_(False)(inputs())
    with model.disable_adapter():
        model.merge_adapter()
        assert torch.equal(model(inputs()), base)
    assert torch.allclose(model(inputs()), out, atol=1e-6)
    model.unmerge_adapter()
    assert torch.equal(model(inputs()), out)


def test_unmerging_while_disabled_keeps_the_bases_bits() -> None:
    model = trained()
    before = bits(model)
    model.merge_adapter()
    with model.disable_adapter():
        model.unmerge_adapter()
    assert same_bits(bits(model), before)


def test_hundred_merges_in_bfloat16_do_not_drift() -> None:
    model = trained(mlp().bfloat16())
    before = bits(model)
    for _ in range(100):
        model.merge_adapter()
        model.unmerge_adapter()
    assert same_bits(bits(model), before)


def test_train_and_eval_change_no_weight() -> None:
    model = trained()
    model.merge_adapter()
    before = bits(model)
    model.train()
    model.eval()
    assert same_bits(bits(model), before)


def test_merging_one_of_two_leaves_the_other_live() -> None:
    model = trained()
    model.add_adapter("second", config(use_dora=True))
    model.set_adapter(["default", "second"])
    nudge(model, 4)
    out = model(inputs())
    model.merge_adapter(["default"])
    assert torch.allclose(model(inputs()), out, atol=1e-6)
    with pytest.warns(AfinaWarning, match="already merged"):
        model.merge_adapter(["second"])
    assert torch.allclose(model(inputs()), out, atol=1e-6)
    model.unmerge_adapter()
    assert torch.equal(model(inputs()), out)


def test_merging_out_of_order_says_so() -> None:
    model = trained()
    model.add_adapter("second", config())
    model.set_adapter(["default", "second"])
    with pytest.warns(AfinaWarning, match="order"):
        model.merge_adapter(["second"])


def test_merged_adapter_cannot_be_deleted() -> None:
    model = trained()
    model.add_adapter("second", config())
    model.merge_adapter()
    with pytest.raises(MergeError, match="unmerge"):
        model.delete_adapter("default")
    assert model.peft_config.keys() == {"default", "second"}
    assert {n for _, h in hosts(model) for n in h.names()} == {"default", "second"}


def test_the_references_spelling_reaches_the_same_tensors() -> None:
    layer = trained(lora_dropout=0.1, use_dora=True).get_base_model().layers[0]["up"]
    adapter = layer.adapters["default"]
    assert layer.lora_A["default"].weight is adapter.lora_A
    assert layer.lora_B["default"].weight is adapter.lora_B
    assert (layer.r["default"], layer.lora_alpha["default"], layer.scaling["default"]) == (2, 3, 1.5)
    assert isinstance(layer.lora_dropout["default"], nn.Dropout)
    assert layer.weight is layer.base_layer.weight
    assert (layer.in_features, layer.out_features) == (8, 16)
    assert layer.active_adapters == ["default"]
    assert layer.get_base_layer() is layer.base_layer
    assert (layer.merged, layer.disable_adapters) == ((), False)
    with pytest.raises(AttributeError):
        layer.no_such_thing


def test_scaling_is_set_multiplied_and_reset() -> None:
    model = trained()
    out, base = model(inputs()), mlp()(inputs())
    every = [h for _, h in hosts(model)]
    for host in every:
        host.set_scale("default", 0.0)
    assert torch.allclose(model(inputs()), base, atol=1e-6)
    for host in every:
        host.set_scale("default", 1.0)
    assert torch.equal(model(inputs()), out)
    for host in every:
        host.scale_layer(2.0)
    assert not torch.allclose(model(inputs()), out)
    for host in every:
        host.unscale_layer(2.0)
    assert torch.equal(model(inputs()), out)


class Encoder(nn.Module):
    """torch's encoder, whose layers and container read weights in eval mode."""

    def __init__(self, nested: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        return self.encoder(x, src_key_padding_mask=padding)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("targets", [["linear1"], ["self_attn"], ["self_attn", "linear1", "linear2"]], ids=str)
def test_fused_encoder_does_not_bypass_adapters(nested: bool, targets: list[str]) -> None:
    torch.manual_seed(0)
    x, padding = torch.randn(3, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
    model = afina.get_peft_model(Encoder(nested), config(target_modules=targets))
    nudge(model)
    # In eval mode with gradients torch itself cannot run nested tensors through a layer that trains.
    with_gradients = model.train()(x, padding)
    model.eval()
    with torch.no_grad():
        without = model(x, padding)
        model.merge_adapter()
        merged = model(x, padding)
    keep = ~padding  # what stands at masked places depends on the path that torch takes
    assert torch.allclose(without[keep], with_gradients.detach()[keep], atol=1e-5)
    assert torch.allclose(merged[keep], without[keep], atol=1e-5)


@pytest.mark.parametrize("sizes", [{"kdim": 8}, {"vdim": 8}, {"kdim": 8, "vdim": 4}], ids=str)
def test_attention_with_other_key_sizes_is_refused(sizes: dict[str, int]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, **sizes)
            self.other = nn.Linear(2, 2)

    with pytest.raises(NotAWeight, match="attention"):
        afina.get_peft_model(Model(), config(target_modules=["attention"]))
    afina.get_peft_model(Model(), config(target_modules=["other"], bias="all"))


def test_output_projection_of_an_attention_alone_takes_effect() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    model = nn.Sequential()
    model.add_module("attention", attention)
    x = torch.randn(2, 3, 16)
    before = attention(x, x, x)[0]
    afina.inject_adapter_in_model(config(target_modules=["attention.out_proj"]), model)
    host = attention.out_proj
    assert isinstance(host, ReadHost)
    nudge(model)
    adapter = host.adapters["default"]
    with torch.no_grad():
        delta = 1.5 * adapter.lora_B @ adapter.lora_A
    expected = before + (before - host.base_layer.bias) @ torch.linalg.pinv(host.base_layer.weight).T @ delta.T
    assert torch.allclose(attention(x, x, x)[0], expected, atol=1e-4)


def test_layer_that_is_never_called_is_an_error_in_the_first_training_forward() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.read = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x) @ getattr(self, "read").weight  # noqa: B009 - what reads it cannot be told by its name

    model = afina.get_peft_model(Reads(), config(target_modules=["used", "read"])).train()
    with pytest.raises(ConfigError, match="not called in forward"):
        model(inputs())
    model = afina.get_peft_model(Reads(), config(target_modules=["used"])).train()
    model(inputs()).sum().backward()


@pytest.mark.parametrize("call", ["positional", "keyword"])
def test_input_may_be_positional_or_a_keyword(call: str) -> None:
    class Named(nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(states)

    model = nn.Sequential()
    model.add_module("a", Named(8, 4))
    afina.inject_adapter_in_model(config(target_modules=["a"]), model)
    nudge(model)
    x = inputs()
    assert torch.equal(model.a(x) if call == "positional" else model.a(states=x), model.a(x))


def test_strided_and_empty_batches_pass() -> None:
    model = trained()
    assert model(inputs()[:0]).shape == (0, 4)
    assert torch.allclose(model(inputs()[::2]), model(inputs())[::2], atol=1e-6)


def test_a_host_is_transparent_to_isinstance_of_its_base_only_by_attribute() -> None:
    host = trained().get_base_model().layers[0]["up"]
    assert isinstance(host, Host)
    assert not isinstance(host, nn.Linear)
    assert isinstance(host.base_layer, nn.Linear)
