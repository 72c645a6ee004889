"""`layer_replication`: the reference's numbers, its files, and the base as it was."""

from __future__ import annotations

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import afina
from afina.errors import ConfigError, TargetError
from afina.kernels.speed import speed_up

IDS = torch.arange(6)[None]
MAP = [[0, 3], [1, 3]]


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=3, vocab_size=16,
                                        num_attention_heads=2)).eval()  # fmt: skip


def lora(library, **options):
    return library.LoraConfig(target_modules=["q_proj", "up_proj"], r=2, init_lora_weights=False,
                              task_type="CAUSAL_LM", **options)  # fmt: skip


def adapted(library, base=None):
    return library.get_peft_model(base or llama(), lora(library, layer_replication=MAP)).eval()


def test_files_mean_the_same_in_both_directions(tmp_path):
    theirs = adapted(peft)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = afina.PeftModel.from_pretrained(llama(), tmp_path / "theirs")
    assert len(ours.base_model.model.model.layers) == 5
    assert torch.allclose(ours(IDS).logits, theirs(IDS).logits, atol=1e-5)
    ours.save_pretrained(tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(llama(), tmp_path / "ours")
    assert torch.equal(back(IDS).logits, theirs(IDS).logits)


def test_replicated_layers_share_the_bases_weights_and_have_adapters_of_their_own():
    layers = adapted(afina).base_model.model.model.layers
    first, again = layers[1].self_attn.q_proj, layers[3].self_attn.q_proj
    assert first.base_layer.weight is again.base_layer.weight
    assert not torch.equal(first.lora_A["default"].weight, again.lora_A["default"].weight)


def test_generation_has_a_cache_for_every_layer():
    model = adapted(afina)
    given = model.generate(IDS, max_new_tokens=4, do_sample=False)
    assert torch.equal(given, model.generate(IDS, max_new_tokens=4, do_sample=False, use_cache=False))


def test_unload_gives_the_layers_back():
    base = llama()
    before, own = base(IDS).logits, list(base.model.layers)
    plain = adapted(afina, base).unload()
    assert list(plain.model.layers) == own
    assert plain.config.num_hidden_layers == 3
    assert torch.equal(plain(IDS).logits, before)


def test_merging_changes_no_layer_that_shares_the_weight():
    model = adapted(afina)
    before = model(IDS).logits
    merged = model.merge_and_unload()
    assert len(merged.model.layers) == 5
    assert torch.allclose(merged(IDS).logits, before, atol=1e-5)


def test_an_error_leaves_the_layers_as_they_were():
    base = llama()
    config = afina.LoraConfig(target_modules=["nowhere"], layer_replication=MAP)
    with pytest.raises(TargetError):
        afina.get_peft_model(base, config)
    assert len(base.model.layers) == base.config.num_hidden_layers == 3


@pytest.mark.parametrize("wrong", [[[0, 4]], [[2, 1]], [[0]], [[-1, 2]]])
def test_ranges_that_the_model_does_not_have_are_refused(wrong):
    with pytest.raises(ConfigError, match="not ranges of the model's layers"):
        afina.get_peft_model(llama(), lora(afina, layer_replication=wrong))


def test_a_later_adapter_stands_on_the_same_layers():
    model = adapted(afina)
    model.add_adapter("same", lora(afina, layer_replication=MAP))
    assert len(model.base_model.model.model.layers) == 5
    with pytest.raises(ConfigError, match="replicated otherwise"):
        model.add_adapter("other", lora(afina, layer_replication=[[0, 1]]))


def test_an_attention_that_is_set_later_reaches_every_layer():
    model = adapted(afina).train()
    mask = torch.ones_like(IDS).index_fill(1, torch.tensor([4, 5]), 0)
    labels = IDS.where(mask.bool(), -100)
    plain = model(input_ids=IDS, labels=labels, attention_mask=mask).loss
    assert "attention: by batched products of blocks" in speed_up(model)
    loss = model(input_ids=IDS, labels=labels, attention_mask=mask).loss
    loss.backward()
    torch.testing.assert_close(loss, plain, rtol=1e-4, atol=1e-5)
    layers = model.get_base_model().model.layers
    assert len({id(layer.self_attn.config) for layer in layers} | {id(model.get_base_model().config)}) == 1
