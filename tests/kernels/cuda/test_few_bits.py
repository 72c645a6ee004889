"""Layers in 4 bits that share a buffer give bitsandbytes' outputs and gradients; run on the processor."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import afina
from afina.kernels.cuda import few_bits
from afina.kernels.cuda.few_bits import Buffer, share_buffer
from afina.kernels.updates import joint, siblings

bnb = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.usefixtures("writes_where_it_is_told")
IDS = torch.arange(3, 27).view(2, 12)


def in_4_bits(model, nested=True):
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name != "lm_head":
            how = {"quant_type": "nf4", "compress_statistics": nested}
            few = bnb.nn.Linear4bit(layer.in_features, layer.out_features, bias=layer.bias is not None,
                                    compute_dtype=torch.float32, **how)  # fmt: skip
            few.weight = bnb.nn.Params4bit(layer.weight.data.clone(), requires_grad=False, **how)
            if layer.bias is not None:
                few.bias = nn.Parameter(layer.bias.data.clone(), requires_grad=False)
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, few.to("cpu"))
    return model


def llama(nested=True):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, attention_bias=True)  # fmt: skip
    lora = afina.LoraConfig(init_lora_weights=False, target_modules="all-linear", task_type="CAUSAL_LM")
    return afina.get_peft_model(in_4_bits(LlamaForCausalLM(config), nested), lora).train()


def step(model, checkpointing=False):
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]


@pytest.fixture
def weights(monkeypatch):
    """Where every dequantised weight lay."""
    places, own = [], few_bits._dequantised

    def noted(*args):
        out = own(*args)
        places.append(out.data_ptr())
        return out

    monkeypatch.setattr(few_bits, "_dequantised", noted)
    return places


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_a_step_is_bitsandbytes_own_and_all_its_weights_lie_in_one_place(nested, checkpointing, weights):
    expected = step(llama(nested), checkpointing)
    assert not weights
    shared = llama(nested)
    assert share_buffer(shared) == 14
    assert share_buffer(shared) == 0
    step(shared)  # by then the buffer is as large as the largest
    shared.zero_grad()
    weights.clear()
    found = step(shared, checkpointing)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert len(set(weights)) == 1
    assert len(weights) > 14 * (3 if checkpointing else 2) - 8


@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_that_read_the_same_input_are_made_together_through_the_buffer(checkpointing, weights, monkeypatch):
    expected, model, sets = step(llama(), checkpointing), llama(), []
    own = joint.lora_linears
    monkeypatch.setattr(joint, "lora_linears", lambda x, layers, room: sets.append(len(layers)) or own(x, layers, room))
    share_buffer(model)
    assert siblings.join(model.get_base_model(), lambda: model(input_ids=IDS)) == 4
    assert sets == []
    found = step(model, checkpointing)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert sets == [3, 1, 2, 1] * (4 if checkpointing else 2)
    weights.clear()
    torch.testing.assert_close(step(copy.deepcopy(model), checkpointing)[0], expected[0])
    assert len(set(weights)) == 1


def test_compiled_layers_have_no_break():
    model = llama()
    share_buffer(model)
    siblings.join(model.get_base_model(), lambda: model(input_ids=IDS))
    part, x = model.get_base_model().model.layers[0].mlp, torch.linspace(-1, 1, 192).view(1, 3, 64)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(part, backend="eager", fullgraph=True)(x), part(x), rtol=1e-4, atol=1e-6)


def test_a_copy_of_a_model_gives_the_same_and_evaluation_is_the_layers_own(weights):
    model = llama()
    share_buffer(model)
    again = copy.deepcopy(model)
    torch.testing.assert_close(step(again), step(model))
    weights.clear()
    with torch.no_grad():
        model.eval()(input_ids=IDS)
    assert not weights


def test_the_buffer_grows_to_the_largest_and_is_one_for_a_dtype():
    buffer, cpu = Buffer(), torch.device("cpu")
    small = buffer.of(torch.Size((4, 8)), torch.float32, cpu)
    large = buffer.of(torch.Size((16, 8)), torch.float32, cpu)
    assert large.shape == (16, 8)
    assert buffer.of(torch.Size((8, 4)), torch.float32, cpu).data_ptr() == large.data_ptr() != small.data_ptr()
    assert buffer.of(torch.Size((4, 8)), torch.bfloat16, cpu).data_ptr() != large.data_ptr()
