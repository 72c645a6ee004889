"""Hosts: what parents see of them, and what merging leaves."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from torch import nn

import afina
from afina.core.hosts.adapter import Site
from afina.core.hosts.calls import Scope, switched_off
from afina.core.hosts.host import Host, hosts
from afina.core.hosts.host_kinds import ReadHost
from afina.core.hosts.replacement import Replacement
from afina.errors import AfinaWarning, ConfigError, MergeError, NameTakenError, NotAWeight, NumericError

from ..tiny import bits, config, inputs, mlp, nudge, same_bits, trained
from .test_adapter import Shift, Twice


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


# -- one layer --------------------------------------------------------------------------------------------------------


def at(host: Host, dtype: torch.dtype = torch.float32) -> Site:
    return Site(host.base, "x", dtype, torch.device("cpu"))


def host_of(*names: str, dtype: torch.dtype = torch.float32, layer: nn.Module | None = None) -> Host:
    """A layer with active adapters that each add 1/2 to every weight."""
    host = Host(nn.Linear(3, 2) if layer is None else layer)
    for name in names:
        host.add(name, Shift(at(host, dtype), None))
    host.set_active(names)
    return host


X = torch.ones(4, 3)


def test_fresh_host_runs_the_layer_and_takes_its_mode() -> None:
    layer = nn.Linear(3, 2).eval()
    host = Host(layer)
    assert not host.called
    assert torch.equal(host(X), layer(X))
    assert host.called
    assert not host.training
    assert not host.adapters.training
    assert Host(nn.Linear(3, 2)).training
    assert (host.active, host.stack, host.merged, host.saved, host.enabled) == ((), (), (), {}, True)
    assert (host.names(), host.parameter, host.beside) == ([], None, None)
    scope = Scope()
    assert Host(layer, scope=scope).scope is scope


def test_adapters_come_and_go_under_their_names() -> None:
    host = host_of("a").eval()
    second = Shift(at(host), None)
    assert second.training
    host.add("b", second)
    assert not second.training
    assert host.active == ("a",)  # a new one is not activated
    with pytest.raises(NameTakenError, match="b"):
        host.add("b", second)
    host.add_bias("c", nn.Parameter(torch.ones(2)))
    host.add_bias("a", nn.Parameter(torch.ones(2)))
    assert host.names() == ["a", "b", "c"]
    host.set_active(("b", "a", "none"))
    assert host.stack == (second, host.adapter("a"))
    host.remove("a")
    host.remove("none")
    assert (host.names(), host.active, host.stack) == (["b", "c"], ("b",), (second,))
    assert host.adapter("a") is None
    third = Shift(at(host), None)
    host.replace_adapter("b", third)
    assert host.stack == (third,)
    assert not third.training


def test_last_active_trained_bias_stands_in_until_it_is_merged() -> None:
    host = host_of("a", "b")
    one, two = nn.Parameter(torch.ones(2)), nn.Parameter(torch.full((2,), 2.0))
    assert host.own_bias() is None
    host.add_bias("a", one)
    assert host.own_bias() is one
    host.add_bias("b", two)
    assert host.own_bias() is two
    host.set_active(("b", "a"))
    assert host.own_bias() is one
    host.enable_adapters(False)
    assert host.own_bias() is None
    host.enable_adapters(True)
    out = host(X)
    host.merge()
    assert host.own_bias() is None
    assert torch.allclose(host(X), out)
    host.set_active(())
    host.unmerge()
    assert host.own_bias() is None


def test_weights_are_combined_in_the_wider_of_both_dtypes() -> None:
    assert host_of().compute_dtype == torch.float32
    assert host_of("a", dtype=torch.bfloat16).compute_dtype == torch.float32
    assert host_of("a", dtype=torch.float64).compute_dtype == torch.float64
    assert host_of("a", layer=nn.Linear(3, 2).bfloat16()).compute_dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_output_has_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    host = host_of("a", dtype=torch.promote_types(dtype, torch.float32), layer=nn.Linear(3, 2).to(dtype))
    assert host(X.to(dtype)).dtype == dtype
    table = host_of("a", dtype=torch.float64, layer=nn.Embedding(5, 3).bfloat16())
    assert table(torch.tensor([1, 2])).dtype == torch.bfloat16
    assert host.finish((1, 2), X) == (1, 2)
    assert host.finish(X.double(), (X,)).dtype == torch.float64


def test_merge_takes_the_named_adapters_and_checks_them_all_first() -> None:
    host = host_of("a", "b")
    plain = host.base_layer.weight
    host.merge(["b"])
    assert host.merged == ("b",)
    assert torch.allclose(host.base_layer.weight, plain + 0.5)
    assert host.saved["weight"] is plain
    with pytest.warns(AfinaWarning, match="already merged: b"):
        host.merge()
    assert host.merged == ("b", "a")
    assert torch.allclose(host.base_layer.weight, plain + 1)
    assert host.original_parameters()["weight"] is plain
    host.unmerge()
    assert host.base_layer.weight is plain
    host.merge(["none"])
    assert (host.merged, host.saved) == ((), {})
    host.add("c", Twice(at(host), None))
    with pytest.raises(Exception, match="no merged form"):
        host.merge(["a", "c"])
    assert host.base_layer.weight is plain
    assert host.merged == ()
    host.set_active(("a",))
    host.merge(["b"])  # not active, but named
    assert host.merged == ("b",)


def test_merged_weights_make_way_while_adapters_are_off() -> None:
    host = host_of("a")
    plain = host.base_layer.weight
    host.merge()
    merged = host.base_layer.weight
    for _ in range(2):
        host.enable_adapters(False)
        host.enable_adapters(False)
        assert host.base_layer.weight is plain
        assert host.original_parameters()["weight"] is plain
        assert host.stack == ()
        host.enable_adapters(True)
        assert host.base_layer.weight is merged
    with switched_off(host.scope):
        assert torch.equal(host(X), nn.functional.linear(X, plain, host.base_layer.bias))
        assert not host.applies
    assert host.applies
    host.enable_adapters(False)
    assert not host.applies
    with switched_off(host.scope):
        assert torch.equal(host(X), host.base_layer(X))


def test_merged_weight_that_is_not_finite_is_refused_by_name() -> None:
    for poison in ("weight", "bias"):
        host = host_of("a", "b")
        host.add_bias("a", nn.Parameter(torch.ones(2)))
        with torch.no_grad():
            (host.adapter("b").by if poison == "weight" else host.biases["a"]).fill_(float("nan"))  # type: ignore[union-attr]
        plain = host.base_layer.weight
        with pytest.raises(NumericError, match="a, b"):
            host.merge()
        assert host.base_layer.weight is plain
        assert host.enabled


def test_quantised_base_is_merged_into_only_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    host, asked = host_of("a"), []
    monkeypatch.setattr(host.base, "check_merge", asked.append, raising=False)
    host.merge()
    host.unmerge()
    host.merge(requantise=True)
    assert asked == [False, True]


def test_what_stays_is_the_layer_or_the_trained_copy_of_a_whole_module() -> None:
    host = host_of("a")
    assert host.result() is host.base_layer
    whole = Host(nn.LayerNorm(3))
    whole.add("c", Replacement(at(whole), None))
    assert whole.result() is whole.base_layer
    whole.set_active(("c",))
    assert (whole.result() is whole.base_layer) == whole.adapter("c").is_weight  # type: ignore[union-attr]
    assert whole.result(keep=False) is whole.base_layer
    block = Host(nn.Sequential(nn.Linear(3, 3)))
    block.add("c", Replacement(at(block), None))
    block.set_active(("c",))
    block.merge()
    assert block.result() is block.adapter("c").copy  # type: ignore[union-attr]
    assert block.result(keep=False) is block.base_layer
    assert block.merged == ()
    block.adapter("c").copy[0].weight.data.fill_(float("inf"))  # type: ignore[union-attr]
    with pytest.raises(NumericError):
        block.merge()


def test_weight_that_is_assigned_is_the_layers() -> None:
    host, other = host_of("a"), nn.Parameter(torch.ones(2, 3))
    host.weight = other
    assert host.base_layer.weight is other
    assert host.weight is other
    assert "weight" not in host._parameters


def test_exactly_the_named_adapters_of_a_layer_train() -> None:
    host = host_of("a", "b")
    host.add_bias("b", nn.Parameter(torch.ones(2)))
    host.require_grad(("a",))
    assert {n for n, p in host.named_parameters() if p.requires_grad and "base_layer" not in n} == {"adapters.a.by"}
    host.require_grad(("b",))
    assert {n for n, p in host.named_parameters() if p.requires_grad and "base_layer" not in n} == {
        "adapters.b.by", "biases.b",
    }  # fmt: skip


def test_special_methods_of_the_layer_are_not_the_hosts() -> None:
    layer = nn.Sequential(nn.Linear(2, 2))
    assert len(layer) == 1
    assert not hasattr(Host(layer), "__len__")


def test_plain_module_lies_under_all_hosts() -> None:
    inner = nn.Linear(3, 2)
    assert Host(Host(inner)).get_base_layer() is inner
    assert [n for n, _ in hosts(nn.Sequential(Host(inner), nn.ReLU()))] == ["0"]


def test_autocast_decides_on_the_dtype_of_outputs() -> None:
    host = host_of("a")
    with torch.autocast("cpu", torch.bfloat16):
        assert host(X).dtype == torch.bfloat16
    assert host(X).dtype == torch.float32


@pytest.mark.parametrize("swaps", [False, True])
def test_layers_wait_for_each_other_only_where_they_swap_parameters(swaps: bool) -> None:
    host, done = Host(nn.MultiheadAttention(3, 1) if swaps else nn.Linear(3, 2)), threading.Event()
    thread = threading.Thread(target=lambda: (host(*[X] * (3 if swaps else 1)), done.set()), daemon=True)
    with host.scope.swapping:
        thread.start()
        assert done.wait(0.2 if swaps else 5) is not swaps
    assert done.wait(5)
