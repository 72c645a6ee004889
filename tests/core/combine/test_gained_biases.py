"""Biases that merging gives to layers without one are there after saving and loading, or their loss is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import afina
from afina.errors import AfinaWarning

from ..tiny import nudge, trained

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
IDS = torch.arange(14).view(2, 7)


def adapted(model: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return nudge(afina.get_peft_model(model.eval(), afina.LoraConfig(r=2, **options))).eval()


@pytest.mark.parametrize("targets", [["q_proj"], ["v_proj", "down_proj"], "all-linear"])
def test_merged_biases_are_there_when_the_saved_model_is_loaded(tmp_path: Any, targets: Any) -> None:
    model = adapted(LlamaForCausalLM(LlamaConfig(**SIZES)), target_modules=targets, lora_bias=True)
    expected = model(IDS).logits
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(IDS).logits, expected)
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.model.layers[0].self_attn.q_proj.bias is not None or "q_proj" not in targets
    torch.testing.assert_close(loaded(IDS).logits, expected)


def test_lora_bias_on_a_class_without_room_is_told_at_merging() -> None:
    model = adapted(Qwen2ForCausalLM(Qwen2Config(**SIZES)), target_modules=["o_proj"], lora_bias=True)
    expected = model(IDS).logits
    with pytest.warns(AfinaWarning, match=r"biases to 2 layers .* built without .*o_proj.bias"):
        merged = model.merge_and_unload()
    torch.testing.assert_close(merged(IDS).logits, expected)


def test_config_stays_where_no_bias_was_gained(recwarn: Any) -> None:
    model = adapted(LlamaForCausalLM(LlamaConfig(**SIZES)), target_modules=["q_proj"])
    merged = model.merge_and_unload()
    assert merged.config.attention_bias is False
    assert merged.model.layers[0].self_attn.k_proj.bias is None
    trained(lora_bias=True).merge_and_unload()  # a model that has no config, and biases of its own
    assert not [w for w in recwarn if issubclass(w.category, AfinaWarning)]
