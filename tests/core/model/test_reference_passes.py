"""DPO's and GRPO's reference passes: the base's own logits inside `disable_adapter`, trained copies included."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import afina

IDS = torch.arange(6)[None]


def llama(tied):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, vocab_size=16,
                                        num_attention_heads=2, tie_word_embeddings=tied))  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"], ["norm"]], ids=str)
def test_steps_with_reference_passes_leave_the_reference_where_it_was(tied, saved):
    base = llama(tied)
    with torch.no_grad():
        reference = base(IDS).logits
    config = afina.LoraConfig(target_modules=["q_proj"], modules_to_save=saved, task_type="CAUSAL_LM")
    model = afina.get_peft_model(base, config)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    before = None
    for _ in range(3):
        with torch.no_grad(), model.disable_adapter():
            assert torch.equal(model(IDS).logits, reference)
        policy = model(IDS).logits
        before = policy if before is None else before
        loss = -(policy.log_softmax(-1) - reference.log_softmax(-1))[..., 1].mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        optimizer.step()
    assert not torch.equal(model(IDS).logits, before)
    with model.disable_adapter():
        assert torch.equal(model(IDS).logits, reference)
