from __future__ import annotations

import json

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import afina
from afina.errors import ConfigError

IDS = torch.arange(4)[None]


def llama(width=16):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(hidden_size=width, intermediate_size=16, num_hidden_layers=2, vocab_size=16,
                                        num_attention_heads=2)).eval()  # fmt: skip


def saved(folder, tokens, width=16):
    config = afina.CartridgeConfig(num_virtual_tokens=tokens, task_type="CAUSAL_LM", num_frozen_tokens=1)
    model = afina.get_peft_model(llama(width), config)
    torch.manual_seed(tokens)
    model.prompt_encoder["default"].fill(torch.randn(tokens, 2 * 2 * width))
    model.save_pretrained(folder)
    return folder


def logits(library, folder):
    with torch.no_grad():
        return library.PeftModel.from_pretrained(llama(), folder).eval()(IDS).logits


def test_composed_cartridges_are_those_of_the_reference(tmp_path):
    parts = [saved(tmp_path / "a", 3), saved(tmp_path / "b", 4)]
    afina.compose_cartridge_adapters(parts, output_path=tmp_path / "ours")
    peft.compose_cartridge_adapters(parts, output_path=tmp_path / "theirs")
    ours = afina.load_peft_weights(tmp_path / "ours")["prompt_embeddings"]
    assert torch.equal(ours, peft.load_peft_weights(tmp_path / "theirs", device="cpu")["prompt_embeddings"])
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert (config["num_virtual_tokens"], config["num_frozen_tokens"]) == (7, 1)
    found = logits(afina, tmp_path / "ours")
    assert torch.allclose(found, logits(peft, tmp_path / "ours"), atol=1e-5)
    assert not torch.allclose(found, logits(afina, parts[0]), atol=1e-2)


def test_what_cannot_be_composed_is_refused_and_nothing_is_written(tmp_path):
    first = saved(tmp_path / "a", 3)
    afina.get_peft_model(llama(), afina.LoraConfig()).save_pretrained(tmp_path / "lora")
    others = {"adapter_paths": [first], "no cartridge": [first, tmp_path / "lora"],
              "token_dim": [first, saved(tmp_path / "wide", 3, 32)]}  # fmt: skip
    for words, paths in others.items():
        with pytest.raises(ConfigError, match=words):
            afina.compose_cartridge_adapters(paths, output_path=tmp_path / "out")
    with pytest.raises(ConfigError, match="pickle"):
        afina.compose_cartridge_adapters([first, first], output_path=tmp_path / "out", safe_serialization=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pairs", [False, True])
def test_a_cache_becomes_the_references_table(pairs):
    with torch.no_grad():
        cache = llama()(IDS, use_cache=True).past_key_values
    given = [(layer.keys, layer.values) for layer in cache.layers] if pairs else cache
    ours = afina.prompt_embeddings_from_past_key_values(given, num_virtual_tokens=3)
    assert torch.equal(ours, peft.prompt_embeddings_from_past_key_values(given, num_virtual_tokens=3).flatten(1))
    with pytest.raises(ConfigError, match="shorter"):
        afina.prompt_embeddings_from_past_key_values(given, num_virtual_tokens=5)
