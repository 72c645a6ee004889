"""Prefixes of models whose layers have keys of different heads and widths."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import pytest
import torch
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

import afina
from afina.errors import ConfigError

from ..tiny import llama

IDS = torch.arange(5)[None]
SHARED = {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8}
MORE_HEADS = {"num_key_value_heads": 2, "num_global_key_value_heads": 1, "attention_k_eq_v": True}


def gemma(**options):
    torch.manual_seed(0)
    sizes = {"num_key_value_heads": 1, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, **options}
    return Gemma4ForCausalLM(Gemma4TextConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=4, vocab_size=64, vocab_size_per_layer_input=64,
        num_attention_heads=2, head_dim=16, global_head_dim=32, layer_types=["sliding_attention", "full_attention"] * 2,
        **sizes,
    )).eval()  # fmt: skip


def prefixed(library, options, **more):
    config = library.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM", **more)
    return library.get_peft_model(gemma(**options), config).eval()


def greedy(model, count):
    ids = IDS
    for _ in range(count):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids


@pytest.mark.parametrize("options", [{}, SHARED], ids=["two widths", "shared keys"])
def test_layers_take_their_part_of_the_references_prefix(options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = prefixed(peft, options)
        expected = theirs(IDS).logits
    ours = prefixed(afina, options)
    afina.set_peft_model_state_dict(ours, peft.get_peft_model_state_dict(theirs))
    found = ours(IDS).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, gemma(**options)(IDS).logits, atol=1e-3)


@pytest.mark.parametrize("options", [{}, SHARED, MORE_HEADS], ids=["two widths", "shared keys", "more heads"])
def test_generation_goes_on_as_the_forward_pass_would(options):
    ours = prefixed(afina, options)
    plain = greedy(gemma(**options), 4)
    with torch.no_grad():
        ours.prompt_encoder["default"].embedding.weight.mul_(5)
        assert torch.equal(ours.generate(input_ids=IDS, max_new_tokens=4, do_sample=False), greedy(ours, 4))
    assert not torch.equal(greedy(ours, 4), plain)


def test_every_layer_with_keys_of_its_own_trains_a_part_of_the_prefix():
    ours = prefixed(afina, MORE_HEADS)
    ours(input_ids=IDS, labels=IDS).loss.backward()
    grads = ours.prompt_encoder["default"].embedding.weight.grad.view(3, 8, -1)
    assert all(grads[:, i].abs().sum() > 0 for i in range(8))


def test_a_prefix_that_fits_some_layers_only_is_refused():
    with pytest.raises(ConfigError, match="does not fit all layers"):
        prefixed(afina, MORE_HEADS, token_dim=32, num_attention_heads=1)


@pytest.mark.parametrize("kind", [afina.PrefixTuningConfig, afina.CartridgeConfig])
def test_sizes_of_the_queries_mean_those_of_the_keys_and_others_are_refused(kind: Any) -> None:
    def adapted(**sizes: int) -> Any:
        base = llama(hidden_size=32, num_attention_heads=4, num_key_value_heads=2)
        return afina.get_peft_model(base, kind(task_type="CAUSAL_LM", num_virtual_tokens=3, **sizes)).eval()

    ids = torch.arange(3, 9)[None]
    for sizes in ({}, {"num_attention_heads": 4}, {"token_dim": 32}, {"num_attention_heads": 2, "token_dim": 16}):
        model = adapted(**sizes)
        assert model.peft_config["default"].token_dim == 16
        assert torch.isfinite(model(ids).logits).all()
    for wrong in ({"num_attention_heads": 1}, {"num_attention_heads": 8}, {"token_dim": 8}):
        with pytest.raises(ConfigError, match="another size"):
            adapted(**wrong)
