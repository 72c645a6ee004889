"""Layers in 8 bits that share a buffer, and those made together, are bitsandbytes' own; run on the processor, where its
8-bit products are those of layers in eval mode."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import afina
from afina.kernels import speed
from afina.kernels.cuda import eight_bits
from afina.kernels.cuda.few_bits import share_buffer
from afina.kernels.updates import joint, siblings

bnb = pytest.importorskip("bitsandbytes")
IDS = torch.arange(3, 27).view(2, 12)


def in_8_bits(model, threshold):
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name != "lm_head":
            few = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, bias=layer.bias is not None,
                                      has_fp16_weights=False, threshold=threshold)  # fmt: skip
            few.weight = bnb.nn.Int8Params(layer.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
            if layer.bias is not None:
                few.bias = nn.Parameter(layer.bias.data.clone(), requires_grad=False)
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, few.to("cpu"))
    return model


def llama(threshold=0.0, dtype=torch.float32, bias=True, targets="all-linear"):
    """In eval mode: its layers then multiply in 8 bits here as they do on GPUs."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, attention_bias=bias)  # fmt: skip
    lora = afina.LoraConfig(init_lora_weights=False, target_modules=targets, task_type="CAUSAL_LM")
    base = in_8_bits(LlamaForCausalLM(config).to(dtype), threshold)
    return afina.get_peft_model(base, lora).eval()


def step(model, checkpointing=False):
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.fixture
def rounded(monkeypatch):
    """How often an input was rounded, and how many layers each joint operation had."""
    inputs, sets, own_ops, own = [], [], eight_bits._ops, joint.lora_linears

    class Ops:
        def __getattr__(self, name):
            if name == "int8_vectorwise_quant":
                inputs.append(name)
            return getattr(own_ops(), name)

    monkeypatch.setattr(eight_bits, "_ops", Ops)
    monkeypatch.setattr(joint, "lora_linears", lambda x, layers, room: sets.append(len(layers)) or own(x, layers, room))
    return inputs, sets


@pytest.mark.parametrize("threshold", [0.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_layer_has_bitsandbytes_output_and_gradient_to_the_bit(dtype, threshold, places):
    torch.manual_seed(0)
    own = in_8_bits(nn.Sequential(nn.Linear(24, 40)), threshold).eval()
    ours = copy.deepcopy(own)
    assert share_buffer(ours) == 1
    x = torch.randn(2, 5, 24)
    x[..., 7] *= 9  # a column above the threshold
    found = []
    for layer in (own, ours):
        given = x.to(dtype).requires_grad_()
        y = layer(given)
        found.append([y.detach(), *torch.autograd.grad(y.float().square().sum(), given)])
        assert y.dtype == dtype
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    exact = nn.functional.linear(x, ours[0].weight.data * (ours[0].weight.SCB / 127)[:, None], ours[0].bias)
    assert 1e-4 < (found[1][0] - exact).norm() / exact.norm() < 0.05  # in 8 bits
    assert len(places) == 1


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_layers_that_read_the_same_input_give_the_separate_ones_outputs_and_gradients(
    threshold, checkpointing, places, rounded
):  # fmt: skip
    expected, (inputs, sets) = step(llama(threshold)), rounded
    assert not inputs
    model = llama(threshold)
    assert share_buffer(model) == 14
    step(model)  # by then the buffer is as large as the largest
    alone = len(inputs)
    assert alone == 14
    assert siblings.join(model.get_base_model(), lambda: model(input_ids=IDS)) == 4
    for seen in (places, inputs, sets):
        seen.clear()
    found = step(model.train(checkpointing), checkpointing)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    again = 2 if checkpointing else 1
    assert sets == [3, 1, 2, 1] * 2 * again
    assert len(inputs) == 8 * again  # once for q, k and v, and for gate and up
    assert len(set(places)) == 1
    # The backward pass's; the input of the first q, k and v has a gradient with checkpointing only.
    assert len(places) == (14 if checkpointing else 11)
    torch.testing.assert_close(step(copy.deepcopy(model), checkpointing), found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_in_16_bits_too_though_the_layers_do_not_record_their_dtype(dtype, bias, rounded):
    (exact, true), (_, sets) = step(llama(0.0, torch.float32, bias)), rounded
    (alone, plain), model = step(llama(0.0, dtype, bias)), llama(0.0, dtype, bias)
    share_buffer(model)
    siblings.join(model.get_base_model(), lambda: model(input_ids=IDS))
    loss, gradients = step(model)
    assert sets == [3, 1, 2, 1] * 2
    assert abs(loss - exact) <= abs(alone - exact) + 2e-2
    assert len(gradients) == len(true)
    for a, b, c in zip(gradients, plain, true, strict=True):
        assert (a.float() - c).norm() <= 1.5 * (b.float() - c).norm() + 2e-2 * c.norm()
        assert a.any()


def test_layers_without_updates_share_the_buffer_alone(places):
    expected, model = step(llama(targets=["q_proj"])), llama(targets=["q_proj"])
    share_buffer(model)
    assert siblings.join(model.get_base_model(), lambda: model(input_ids=IDS)) == 0
    places.clear()
    torch.testing.assert_close(step(model), expected, rtol=1e-4, atol=1e-6)
    assert len(places) == 11


def test_fast_paths_join_layers_in_few_bits_beside_what_is_in_float32(rounded):
    model = llama()
    assert speed._siblings(model.get_base_model()).endswith("because the base is not in 16 bits")
    share_buffer(model)
    assert speed._siblings(model.get_base_model()).endswith("4 sets share the updates' products")
    step(model)
    assert rounded[1] == [3, 1, 2, 1] * 2


def test_in_evaluation_and_in_files_nothing_changes(places):
    model, plain = llama(), llama()
    share_buffer(model)
    step(model)
    places.clear()
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, plain(input_ids=IDS).logits, rtol=0, atol=0)
    assert not places
    a, b = model.get_base_model().state_dict(), plain.get_base_model().state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
