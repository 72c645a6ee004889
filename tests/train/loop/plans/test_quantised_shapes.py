"""A base in few bits by shapes: what has another dtype beside it, and what its packed weights take."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from afina.train.loop.plans.quantised_shapes import FewBits, quantised, stored_bytes
from afina.train.recipe.sections import ModelSection


def base_in(storage):
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=40
    )
    section = ModelSection(path="x", quantize=storage)
    return section, quantised(section, LlamaForCausalLM(config).to(torch.bfloat16))


@pytest.mark.parametrize(("storage", "beside"), [("nf4", torch.float32), ("int8", torch.float32),
                                                 ("int8wo", torch.bfloat16), ("int4wo", torch.bfloat16)])  # fmt: skip
def test_what_lies_beside_is_copied_to_float32_where_layers_take_any_input(storage, beside):
    _, base = base_in(storage)
    packed = [m for m in base.modules() if isinstance(m, FewBits)]
    assert len(packed) == 7
    assert {m.weight.dtype for m in packed} == {torch.bfloat16}
    assert base.get_input_embeddings().weight.dtype == base.lm_head.weight.dtype == beside


def test_what_torchao_packs_stays_in_the_files_pages_too_on_a_processor():
    for storage, bits, mapped in (("nf4", 4.13, 0), ("int8wo", 8, 16)):
        section, base = base_in(storage)
        weight = base.model.layers[0].mlp.up_proj.weight
        assert stored_bytes(section, weight, gpu=True) == round(weight.numel() * bits / 8)
        assert stored_bytes(section, weight, gpu=False) == round(weight.numel() * (bits + mapped) / 8)
