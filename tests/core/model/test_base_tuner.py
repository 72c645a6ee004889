"""`model.base_model` answers what the reference's tuner answers."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import afina

IDS = torch.arange(6)[None]


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, vocab_size=16,
                                        num_attention_heads=2)).eval()  # fmt: skip


def lora(library, **options):
    return library.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False, task_type="CAUSAL_LM", **options)


@pytest.fixture
def pair():
    """The reference's model and ours, with the same two LoRAs."""
    theirs = peft.get_peft_model(llama(), lora(peft))
    theirs.add_adapter("more", lora(peft))
    ours = afina.get_peft_model(llama(), lora(afina))
    ours.add_adapter("more", lora(afina))
    for name in ("default", "more"):
        afina.set_peft_model_state_dict(ours, peft.get_peft_model_state_dict(theirs, adapter_name=name), name)
    return theirs.eval(), ours.eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def same(pair):
    theirs, ours = map(logits, pair)
    return torch.allclose(theirs, ours, atol=1e-5)


@pytest.mark.parametrize("wanted", ["more", ["default", "more"], ["more", "default"]])
def test_set_adapter_activates_one_or_several(pair, wanted):
    for model in pair:
        model.base_model.set_adapter(wanted)
    theirs, ours = pair
    assert ours.base_model.active_adapters == theirs.base_model.active_adapters == ours.active_adapters
    assert same(pair)


def test_adapter_layers_switch_off_and_on(pair):
    plain = logits(llama())
    before = logits(pair[1])
    for model in pair:
        model.base_model.disable_adapter_layers()
    assert same(pair)
    assert torch.equal(logits(pair[1]), plain)
    layer = pair[1].base_model.model.model.layers[0].self_attn.q_proj
    assert layer.disable_adapters
    for model in pair:
        model.base_model.enable_adapter_layers()
    assert torch.equal(logits(pair[1]), before)
    assert not layer.disable_adapters


def test_merge_adapter_and_unmerge_adapter(pair):
    for model in pair:
        model.base_model.merge_adapter(["more"])
    layer = pair[1].base_model.model.model.layers[0].self_attn.q_proj
    assert layer.merged_adapters == ["more"]
    assert layer.merged
    for model in pair:
        model.base_model.unmerge_adapter()
    assert not layer.merged
    assert same(pair)


@pytest.mark.parametrize("name", ["merge_and_unload", "unload"])
def test_the_plain_model_comes_back(pair, name):
    out = [getattr(model.base_model, name)() for model in pair]
    assert type(out[1]) is LlamaForCausalLM
    assert torch.allclose(logits(out[0]), logits(out[1]), atol=1e-5)


def test_delete_adapter_leaves_the_others(pair):
    for model in pair:
        model.base_model.set_adapter("more")
        model.base_model.delete_adapter("more")
    theirs, ours = pair
    assert list(ours.base_model.peft_config) == list(theirs.base_model.peft_config) == ["default"]
    assert ours.active_adapters == ["default"]
    assert same(pair)


def test_add_weighted_adapter(pair):
    for model in pair:
        model.base_model.add_weighted_adapter(["default", "more"], [0.5, 0.25], "both", combination_type="cat")
        model.base_model.set_adapter("both")
    assert same(pair)


def test_targets_are_named_as_in_the_plain_model(pair):
    theirs, ours = pair
    assert ours.base_model.targeted_module_names == list(dict.fromkeys(theirs.base_model.targeted_module_names))
    assert ours.base_model.targeted_parameter_names == theirs.base_model.targeted_parameter_names == []


def test_statuses_are_methods_too(pair):
    for ours in (pair[1], pair[1].base_model):
        assert ours.get_model_status() == afina.get_model_status(pair[1])
        assert ours.get_layer_status() == afina.get_layer_status(pair[1])


def test_members_that_scripts_ask_for(pair):
    theirs, ours = pair
    assert ours.supports_lora_conversion() is theirs.supports_lora_conversion() is True
    assert ours.base_model.get_model_config(ours.base_model.model)["model_type"] == "llama"
    savable, total = ours.get_nb_savable_parameters()
    assert savable == sum(t.numel() for t in peft.get_peft_model_state_dict(theirs).values())
    assert total == ours.get_nb_trainable_parameters()[1]
    layers = [m.base_model.model.model.layers[0].self_attn.q_proj for m in pair]
    for name in layers[1].adapter_layer_names:
        assert set(getattr(layers[1], name)) == {"default", "more"}
        assert name in layers[0].adapter_layer_names
    assert layers[1].active_adapters == layers[0].active_adapters
    assert layers[1].active_adapter == layers[0].active_adapter


def test_gradients_reach_the_embeddings_output_when_prepared_for_checkpointing(pair):
    _, ours = pair
    ours.prepare_model_for_gradient_checkpointing(ours)
    assert ours.get_input_embeddings()(IDS).requires_grad


def test_a_second_method_is_answered_for_as_well():
    model = afina.get_peft_model(llama(), lora(afina))
    model.add_adapter("scales", afina.IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    tuner = model.base_model
    tuner.set_adapter(["default", "scales"])
    assert tuner.active_adapters == ["default", "scales"]
    assert [n.rsplit(".", 1)[-1] for n in tuner.targeted_module_names[:2]] == ["q_proj", "k_proj"]
    assert tuner.prefix == "lora_"
    assert tuner.supports_lora_conversion("scales")
    tuner.delete_adapter("default")
    assert model.active_adapters == ["scales"]


def test_the_active_adapters_are_kept_once():
    model = afina.get_peft_model(llama(), lora(afina))
    model.add_adapter("more", lora(afina))
    model.base_model.set_adapter("more")
    other = copy.deepcopy(model)
    other.set_adapter("default")
    assert model.active_adapters == model.base_model.active_adapters == ["more"]
    assert other.active_adapters == other.base_model.active_adapters == ["default"]
    assert model.active_adapter == "more"


def test_a_plain_modules_config_is_custom():
    model = afina.get_peft_model(nn.Sequential(nn.Linear(4, 4)), afina.LoraConfig(target_modules=["0"]))
    assert model.base_model.get_model_config(model.base_model.model) == {"model_type": "custom"}
