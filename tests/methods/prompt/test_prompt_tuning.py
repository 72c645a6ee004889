"""Where the virtual tokens of prompt tuning start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

import afina

from ...train.tiny import write_model
from ..test_prompts import build

peft = pytest.importorskip("peft", reason="the reference is the oracle")


@pytest.mark.parametrize("text", ["ab", "more than four"])
def test_text_start_is_the_embeddings_of_the_text_as_in_the_reference(text: str, tmp_path: Path) -> None:
    write_model(tmp_path)
    start = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": text, "tokenizer_name_or_path": str(tmp_path)}
    theirs, ours = (
        library.get_peft_model(
            LlamaForCausalLM.from_pretrained(tmp_path),
            library.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, **start),
        )
        for library in (peft, afina)
    )
    table = afina.get_peft_model_state_dict(ours)["prompt_embeddings"]
    assert torch.equal(table, peft.get_peft_model_state_dict(theirs)["prompt_embeddings"])
    assert torch.equal(table[1], LlamaForCausalLM.from_pretrained(tmp_path).get_input_embeddings().weight[
        AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"][1]])  # fmt: skip


def test_sampled_vocabulary_start_consists_of_the_models_embeddings() -> None:
    config = afina.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, prompt_tuning_init="SAMPLE_VOCAB")
    model = afina.get_peft_model(build("llama"), config)
    rows = model.prompt_encoder["default"].embedding.weight
    words = model.get_input_embeddings().weight
    assert all((words == row).all(dim=1).any() for row in rows)


@pytest.mark.parametrize("name", ["PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"])
def test_rows_have_their_place_in_the_reference(name: str) -> None:
    options: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    model = afina.get_peft_model(build("llama"), getattr(afina, name)(**options))
    theirs = peft.get_peft_model(build("llama"), getattr(peft, name)(**options))
    rows = model.prompt_encoder.default.embedding.weight
    assert rows.requires_grad
    assert rows.shape == theirs.prompt_encoder.default.embedding.weight.shape
    before = model.prompt_encoder.default(1).clone()
    rows.data.add_(1)
    assert not torch.allclose(model.prompt_encoder.default(1), before)
