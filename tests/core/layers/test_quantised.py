"""Quantised layers in the states that bitsandbytes' CPU kernels leave them in, and what all models with some share."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import afina
from afina.core.layers.recognise import base_weight
from afina.core.layers.storages import quantised_weight
from afina.core.layers.whole_model import count_parameters, dense_copy, unpack
from afina.errors import AfinaWarning, MergeError

bnb = pytest.importorskip("bitsandbytes")


RANDOM = afina.LoraConfig(target_modules=["0"], init_lora_weights=False)


def packs() -> bool:
    """Whether this CPU has the kernel for which bitsandbytes repacks 4-bit weights."""
    return bool(bnb.functional.has_avx512bf16())


needs_packing = pytest.mark.skipif(not packs(), reason="bitsandbytes repacks on CPUs with AVX512-BF16 only")
EVERY = [(kind, double) for kind in ("nf4", "fp4") for double in (False, True)]


def layer(kind: str = "nf4", double: bool = False, seed: int = 0) -> nn.Module:
    """(192 -> 64), columns of very different size, so that shuffled scales show."""
    torch.manual_seed(seed)
    dense = nn.Linear(192, 64)
    with torch.no_grad():
        dense.weight *= torch.linspace(0.1, 5, 192)
    out = bnb.nn.Linear4bit(192, 64, quant_type=kind, compress_statistics=double)
    out.load_state_dict(dense.state_dict())
    return out.to("cpu").requires_grad_(False).eval()


def inputs() -> torch.Tensor:
    return torch.randn(5, 192, generator=torch.Generator().manual_seed(1))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def packed(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        module(inputs())
    assert base_weight(module).is_packed
    return module


@needs_packing
@pytest.mark.parametrize(("kind", "double"), EVERY)
def test_weight_is_read_right_after_the_cpu_kernel_repacked_it(kind, double):
    module = layer(kind, double)
    before = base_weight(module).read()[0].clone()
    packed(module)
    after = base_weight(module).read()[0]
    assert after.dtype == before.dtype
    assert relative(after, before) < 3e-3  # the kernel keeps the maxima in bfloat16: 8 bits
    naive = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    assert relative(naive, before) > 1  # what reading without looking at the layout gives
    with torch.no_grad():
        assert relative(module(inputs()), inputs() @ after.T + module.bias) < 1e-2  # bfloat16 products


@needs_packing
@pytest.mark.parametrize(("kind", "double"), EVERY)
def test_unpacking_keeps_the_values_and_the_packed_output(kind, double):
    module = packed(layer(kind, double))
    with torch.no_grad():
        out = module(inputs())
    weight = base_weight(module).read()[0].clone()
    unpack(module)
    assert not base_weight(module).is_packed
    assert torch.equal(base_weight(module).read()[0], weight)
    with torch.no_grad():
        assert torch.equal(module(inputs()), out)  # packed again


@needs_packing
def test_gradient_reaches_the_input_after_an_inference():
    model = afina.get_peft_model(nn.Sequential(layer()), afina.LoraConfig(target_modules=["0"], r=2)).eval()
    with torch.no_grad():
        model(inputs())
    x = inputs().requires_grad_(True)
    model(x).sum().backward()
    assert relative(x.grad, model.base_model.model[0].base.read()[0].sum(0).expand(5, -1)) < 1e-6


@needs_packing
def test_training_mode_gives_unadapted_layers_their_gradients_back():
    model = nn.Sequential(layer(), nn.Linear(64, 192).requires_grad_(False), layer(seed=1))
    model = afina.get_peft_model(model, afina.LoraConfig(target_modules=["1"], r=2)).eval()
    with torch.no_grad():
        model(inputs())
    x = inputs().requires_grad_(True)
    model.train()(x).sum().backward()
    assert x.grad.abs().max() > 0


@needs_packing
def test_state_dict_after_an_inference_damages_nothing():
    lone = packed(layer())
    before = base_weight(lone).read()[0].clone()
    lone.state_dict()
    assert relative(base_weight(lone).read()[0], before) > 0.1  # bitsandbytes 0.50 alone shuffles the maxima
    model = afina.get_peft_model(nn.Sequential(layer()), afina.LoraConfig(target_modules=["0"], r=2)).eval()
    with torch.no_grad():
        model(inputs())
    before = model.base_model.model[0].base.read()[0].clone()
    model.state_dict()
    assert torch.equal(model.base_model.model[0].base.read()[0], before)


@pytest.mark.parametrize("after_inference", [False, True])
@pytest.mark.parametrize("double", [False, True])
def test_merging_an_update_of_zero_changes_nothing(double, after_inference):
    model = afina.get_peft_model(nn.Sequential(layer(double=double)), afina.LoraConfig(target_modules=["0"], r=2))
    model.eval()
    if after_inference:
        with torch.no_grad():
            model(inputs())
    with torch.no_grad():
        before = model(inputs())
        with pytest.warns(AfinaWarning, match="lost 0% to 0%"):
            model.merge_adapter(requantise=True)
        assert torch.equal(model(inputs()), before)


@pytest.mark.parametrize("after_inference", [False, True])
def test_small_updates_are_lost_in_four_bits_and_the_warning_says_so(after_inference):
    model = afina.get_peft_model(nn.Sequential(layer()), afina.LoraConfig(target_modules=["0"], r=2)).eval()
    adapter = model.base_model.model[0].adapter("default")
    with torch.no_grad():
        adapter.lora_B.normal_(std=0.05)
        if after_inference:
            model(inputs())
        with pytest.raises(MergeError, match="requantise=True"):
            model.merge_adapter()
        with pytest.warns(AfinaWarning, match="1 weights were requantised"):
            model.merge_adapter(requantise=True)
    assert model.base_model.model[0].base.lost > 0.25


def test_merged_and_unloaded_layer_is_still_quantised():
    model = afina.get_peft_model(
        nn.Sequential(layer()), afina.LoraConfig(target_modules=["0"], init_lora_weights=False)
    )
    with pytest.warns(AfinaWarning, match="requantised"):
        plain = model.merge_and_unload(requantise=True)
    assert type(plain[0]) is bnb.nn.Linear4bit
    assert type(plain[0].weight) is bnb.nn.Params4bit


def test_int8_merges_and_unmerges_before_and_after_its_state_moved():
    torch.manual_seed(0)
    dense = nn.Linear(192, 64)
    module = bnb.nn.Linear8bitLt(192, 64, has_fp16_weights=False)
    module.load_state_dict(dense.state_dict())
    model = afina.get_peft_model(
        nn.Sequential(module.to("cpu").requires_grad_(False)),
        afina.LoraConfig(target_modules=["0"], init_lora_weights=False),
    )
    host = model.base_model.model[0]
    assert relative(host.base.read()[0], dense.weight) < 0.01
    for _ in range(2):
        with torch.no_grad():
            before, weight = model.train()(inputs()), host.base.read()[0].clone()
            with pytest.warns(AfinaWarning, match="requantised"):
                model.merge_adapter(requantise=True)
            assert relative(model(inputs()), before) < 0.02
            model.unmerge_adapter()
            assert torch.equal(model(inputs()), before)
            assert torch.equal(host.base.read()[0], weight)


def test_counts_are_of_the_numbers_that_codes_stand_for():
    assert count_parameters(nn.Sequential(layer(), nn.Linear(3, 2))) == (8, 192 * 64 + 64 + 8)
    assert count_parameters(packed(layer()) if packs() else layer()) == (0, 192 * 64 + 64)


def test_a_trained_copy_of_a_quantised_block_is_dense():
    block = nn.Sequential(layer(), nn.LayerNorm(64))
    twin = dense_copy(block).requires_grad_(True)
    assert type(twin[0]) is nn.Linear
    assert torch.equal(twin[0].weight, base_weight(block[0]).read()[0])
    assert twin[1].weight is not block[1].weight
    assert quantised_weight(block[0]) is not None
    model = afina.get_peft_model(
        nn.Sequential(block), afina.LoraConfig(target_modules=[], modules_to_save=["0"])
    ).eval()
    with torch.no_grad():
        assert relative(model(inputs()), block(inputs())) < 1e-2


def test_deep_copy_of_an_adapted_quantised_model_is_independent():
    model = afina.get_peft_model(
        nn.Sequential(layer()), afina.LoraConfig(target_modules=["0"], init_lora_weights=False)
    )
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model.train()(inputs())
        with pytest.warns(AfinaWarning, match="requantised"):
            twin.merge_adapter(requantise=True)
        assert torch.equal(model(inputs()), before)


def test_all_linear_means_quantised_layers_that_are_no_linear():
    from tests.battery.storages import Opaque

    model = nn.Sequential(Opaque(nn.Linear(8, 8)), nn.ReLU())
    assert len(list(afina.get_peft_model(model, afina.LoraConfig(target_modules="all-linear")).parameters())) == 2


def test_what_needs_dense_weights_says_so():
    from afina.errors import ConfigError

    base = nn.Sequential(layer())
    sparse = afina.SparseConfig(target_modules=["0"], selection="gradient")
    with pytest.raises(ConfigError, match="quantised"):
        afina.preprocess_sparse(base, sparse, lambda: None)
    loftq = afina.LoraConfig(target_modules=["0"], init_lora_weights="loftq", loftq_config={"loftq_bits": 4})
    with pytest.raises(ConfigError, match="replace_lora_weights_loftq"):
        afina.preprocess_loftq(base, loftq)
    with pytest.raises(ConfigError, match="quantised"):
        afina.preprocess_loraga(base, afina.LoraConfig(target_modules=["0"], init_lora_weights="lora_ga"), lambda: None)


@pytest.mark.parametrize("start", ["pissa", "olora", "orthogonal"])
def test_starts_from_the_weight_read_the_dequantised_one(start):
    config = afina.LoraConfig(target_modules=["0"], r=4, init_lora_weights=start)
    base = layer().train()
    before = base(inputs())
    assert relative(afina.get_peft_model(nn.Sequential(base), config).train()(inputs()).detach(), before) < 1e-5
