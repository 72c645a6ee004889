"""LoftQ and its normal-float quantiser."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from afina import LoraConfig, get_peft_model
from afina.errors import CheckpointError, ConfigError
from afina.methods.initialisers import loftq, loftq_factors
from afina.methods.initialisers.loftq import LoftQConfig, preprocess_loftq, replace_lora_weights_loftq
from afina.methods.initialisers.normal_float import levels, quantise

from .cases import IN, OUT, RANK, SCALE, best_approximation, one_layer, product, relative, rows, weight

NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
"""The levels as printed in the QLoRA paper's appendix E."""


def test_four_bit_levels_are_those_of_the_paper():
    torch.testing.assert_close(levels(4), torch.tensor(NF4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_levels_hold_zero_and_both_ends(bits):
    table = levels(bits)
    assert len(table) == 2**bits
    assert {-1.0, 0.0, 1.0} <= set(table.tolist())
    assert bool((table.diff() > 0).all())


def test_quantised_values_are_the_nearest_levels_of_their_block():
    W = torch.randn(3, 50)  # 150 entries: the last block is short
    got = quantise(W, 4).flatten()
    for i in range(0, 150, 64):
        block = W.flatten()[i : i + 64]
        grid = levels(4) * block.abs().max()
        nearest = grid[(block[:, None] - grid).abs().argmin(1)]
        torch.testing.assert_close(got[i : i + 64], nearest, atol=1e-6, rtol=0)


def test_zero_weight_quantises_to_zero():
    assert not quantise(torch.zeros(4, 64), 4).any()


def test_four_bits_equal_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    W = torch.randn(64, 128)
    codes, state = functional.quantize_4bit(W, blocksize=64, quant_type="nf4")
    stored = functional.dequantize_4bit(codes, state)
    assert relative(quantise(W, 4), stored) < 1e-3  # entries at a midpoint may fall to either side


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_error_falls_from_plain_quantisation_and_with_iterations(bits):
    torch.manual_seed(0)
    W = torch.randn(OUT, RANK) @ torch.randn(RANK, IN) + 0.3 * torch.randn(OUT, IN)  # a low-rank part worth taking out
    plain = float((W - quantise(W, bits)).norm())
    errors = []
    for iters in (1, 2, 5):
        start, Q = loftq(W, RANK, SCALE, bits=bits, iters=iters)
        errors.append(float((W - Q - product(start)).norm()))
    assert plain > errors[0] >= errors[1] >= errors[2]
    # With three levels beside zero, scaled by a block's largest entry, a further step can be worse, and is not kept.
    assert bits == 2 or errors[0] > errors[1] > errors[2]


def test_one_iteration_is_the_best_approximation_of_what_quantisation_lost():
    start, Q = loftq(weight(), RANK, SCALE, bits=4)
    assert torch.equal(Q, quantise(weight(), 4))
    assert relative(product(start), best_approximation(weight() - Q, RANK)) < 1e-4
    again = loftq_factors(weight(), Q, RANK, SCALE)
    assert torch.equal(again.A_RI, start.A_RI)
    assert not again.subtract


def _config(**kwargs):
    options = {"loftq_bits": 2, "loftq_iter": 3}
    return LoraConfig(
        r=RANK, lora_alpha=8, target_modules=["0"], init_lora_weights="loftq", loftq_config=options, **kwargs
    )


def test_preprocess_quantises_the_base_and_the_adapter_makes_up_for_it():
    dense, base, config = one_layer(), one_layer(), _config()
    preprocess_loftq(base, config)
    adapted = get_peft_model(base, config)
    with adapted.disable_adapter():
        without = relative(adapted(rows()), dense(rows()))
    assert relative(adapted(rows()), dense(rows())) < without
    assert len(base.state_dict()) > 0
    assert "statistics" not in config.to_dict()


def test_loftq_without_preprocessing_says_what_to_call():
    with pytest.raises(ConfigError, match="preprocess_loftq"):
        get_peft_model(one_layer(), _config())


def test_replacing_fills_factors_for_a_quantised_base(tmp_path):
    dense, base = one_layer(), one_layer()
    save_file(dense.state_dict(), tmp_path / "model.safetensors")
    with torch.no_grad():
        base[0].weight.copy_(quantise(base[0].weight, 2))
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=8, target_modules=["0"]))
    before = relative(model(rows()), dense(rows()))
    replace_lora_weights_loftq(model, tmp_path, callback=lambda m, name: False)
    assert relative(model(rows()), dense(rows())) == before
    replace_lora_weights_loftq(model, tmp_path)
    assert relative(model(rows()), dense(rows())) < before


def test_replacing_needs_the_original_weights(tmp_path):
    model = get_peft_model(one_layer(), LoraConfig(r=RANK, target_modules=["0"]))
    with pytest.raises(CheckpointError, match="no unquantised weights"):
        replace_lora_weights_loftq(model, tmp_path)
    save_file({"other.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="lack a target"):
        replace_lora_weights_loftq(model, tmp_path)


@pytest.mark.parametrize("bad", [{"loftq_bits": 1}, {"loftq_bits": 9}, {"loftq_iter": 0}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ConfigError, match="out of range"):
        LoftQConfig(**bad)


def test_settings_are_taken_as_instance_or_mapping_and_misspellings_are_named():
    assert LoraConfig(loftq_config=LoftQConfig(loftq_bits=8)).loftq_config == {"loftq_bits": 8, "loftq_iter": 1}
    config = LoraConfig(r=RANK, target_modules=["0"], init_lora_weights="loftq", loftq_config={"loftq_bit": 2})
    with pytest.raises(ConfigError, match="unknown key") as caught:
        preprocess_loftq(one_layer(), config)
    assert "did you mean 'loftq_bits'?" in str(caught.value)
