"""What scripts read off a model beside its verbs, against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import afina
from afina.core.registry import methods
from afina.errors import ConfigError, NameTakenError

from ..tiny import nudge, trained

peft = pytest.importorskip("peft")

SIZES = {"num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}
PROMPTS: dict[str, dict[str, Any]] = {
    "PromptTuningConfig": SIZES,
    "PrefixTuningConfig": SIZES,
    "CartridgeConfig": SIZES,
    "PromptEncoderConfig": {**SIZES, "encoder_hidden_size": 16},
    "MultitaskPromptTuningConfig": {**SIZES, "num_tasks": 3},
    "CPTConfig": {
        "cpt_token_ids": [1, 2, 3, 4],
        "cpt_mask": [1, 1, 1, 1],
        "cpt_tokens_type_mask": [1, 2, 3, 4],
        "task_type": "CAUSAL_LM",
    },
}


def llama() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()


def flat(prompt: Any) -> list[torch.Tensor]:
    if isinstance(prompt, torch.Tensor):
        return [prompt]
    return [t for layer in prompt.layers for t in (layer.keys, layer.values)]


def test_every_method_of_virtual_tokens_is_compared() -> None:
    prompts = {m.config.__name__ for m in methods().values() if m.family == "prompt"}
    assert set(PROMPTS) == prompts


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_is_what_the_reference_gives_the_model(name: str, tmp_path: Any) -> None:
    ours = nudge(afina.get_peft_model(llama(), getattr(afina, name)(**PROMPTS[name]))).eval()
    ours.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path).eval()
    tasks = {"task_ids": torch.tensor([0, 2])} if name.startswith("Multitask") else {}
    prompt = flat(ours.get_prompt(2, **tasks))
    assert prompt[0].abs().sum() > 0
    torch.testing.assert_close(prompt, flat(theirs.get_prompt(2, **tasks)))
    if name != "PromptEncoderConfig":  # whose network the reference does not load
        table = ours.get_prompt_embedding_to_save("default")
        torch.testing.assert_close(table, theirs.get_prompt_embedding_to_save("default"))
    assert ours.base_model_torch_dtype == theirs.base_model_torch_dtype == torch.float32


def test_prompt_of_a_method_without_virtual_tokens_is_refused() -> None:
    model = trained()
    with pytest.raises(ConfigError, match="no virtual tokens"):
        model.get_prompt(2)
    with pytest.raises(NameTakenError, match="other"):
        model.get_prompt_embedding_to_save("other")


def test_model_tells_its_trained_copies_and_whether_adapters_apply() -> None:
    model = trained(modules_to_save=["head"])
    assert model.modules_to_save == {"head"}
    assert trained().modules_to_save is None
    assert trained().base_model_torch_dtype is None  # a model that names no dtype
    assert model.has_active_enabled_adapter
    with model.disable_adapter():
        assert not model.has_active_enabled_adapter
    assert model.has_active_enabled_adapter
