"""`PeftModel` around models of transformers: generating, checkpointing, ties."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import afina
from afina.core.hosts.host import hosts
from afina.errors import AfinaWarning

from ..tiny import config, gpt2, llama, nudge, t5

TOKENS = torch.tensor([[1, 5, 9, 3], [2, 4, 8, 7]])


@pytest.mark.parametrize("build", [llama, gpt2], ids=["llama", "gpt2"])
def test_causal_models_generate_the_references_tokens(build: Any, tmp_path: Path) -> None:
    mine = nudge(afina.get_peft_model(build(), afina.LoraConfig(task_type="CAUSAL_LM", r=4)), 2).eval()
    mine.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = peft.PeftModel.from_pretrained(build(), tmp_path).eval()
    assert torch.allclose(mine(TOKENS).logits, reference(TOKENS).logits, atol=1e-5)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(mine.generate(TOKENS, **options), reference.generate(input_ids=TOKENS, **options))
    loss = mine(TOKENS, labels=TOKENS).loss
    loss.backward()
    assert all(p.grad is not None for p in mine.parameters() if p.requires_grad)


def test_encoder_decoder_generates() -> None:
    mine = nudge(afina.get_peft_model(t5(), afina.LoraConfig(task_type="SEQ_2_SEQ_LM"))).eval()
    assert mine.generate(input_ids=TOKENS, max_new_tokens=3).shape[0] == 2


def test_gradient_checkpointing_of_transformers_reaches_the_adapter() -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = nudge(afina.get_peft_model(llama(), afina.LoraConfig(task_type="CAUSAL_LM"))).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        model(TOKENS, labels=TOKENS).loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients(False), gradients(True), strict=True))


def test_tied_head_may_be_a_target_and_the_tie_is_told_of_when_merged() -> None:
    model = nudge(afina.get_peft_model(llama(tied=True), config(target_modules=["embed_tokens", "q_proj"]))).eval()
    out = model(TOKENS).logits
    with pytest.warns(AfinaWarning, match="separate now"):
        plain = model.merge_and_unload()
    assert plain.config.tie_word_embeddings is False
    assert torch.allclose(plain(TOKENS).logits, out, atol=1e-5)


def test_injected_hosts_leave_nothing_behind_after_merge_and_unload(tmp_path: Path) -> None:
    model = nudge(afina.get_peft_model(llama(), afina.LoraConfig(task_type="CAUSAL_LM"))).eval()
    out = model(TOKENS).logits
    plain = model.merge_and_unload()
    assert not list(hosts(plain))
    assert plain.state_dict().keys() == llama().state_dict().keys()
    plain.save_pretrained(tmp_path)
    again = type(plain).from_pretrained(tmp_path)
    assert torch.allclose(again(TOKENS).logits, out, atol=1e-5)


def test_config_that_ties_what_is_no_tie_is_corrected_when_merged() -> None:
    base = llama()
    base.config.tie_word_embeddings = True
    model = nudge(afina.get_peft_model(base, config(target_modules=["embed_tokens"])))
    with pytest.warns(AfinaWarning, match="separate now"):
        plain = model.merge_and_unload()
    assert plain.config.tie_word_embeddings is False
    assert plain.lm_head.weight is not plain.model.embed_tokens.weight
