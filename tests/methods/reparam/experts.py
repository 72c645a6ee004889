"""A tiny language model and LoRAs for it on disk, for methods that route among trained adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import afina

IDS = torch.tensor([[1, 5, 6, 2, 5, 6, 3, 4], [1, 5, 7, 2, 6, 5, 3, 4]])


def base(seed: int = 0) -> Any:
    """A random Llama of two layers, in eval mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=4, bos_token_id=1, eos_token_id=2, pad_token_id=0,
                         use_cache=False)  # fmt: skip
    return LlamaForCausalLM(config).eval()


def save_expert(folder: Path, seed: int, **options: Any) -> str:
    """A random LoRA for `base`, with one direction that stands out; gives the folder."""
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **options}
    model = afina.get_peft_model(base(), afina.LoraConfig(**settings))
    torch.manual_seed(100 + seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.normal_()
                if name.endswith("lora_B"):
                    parameter[:, 1:] *= 0.01
    model.save_pretrained(folder)
    return str(folder)


def logits(model: Any, ids: torch.Tensor = IDS, **inputs: Any) -> torch.Tensor:
    """Without gradients."""
    with torch.no_grad():
        return model(input_ids=ids, **inputs).logits


def mixed(experts: dict[str, str], library: Any = afina, **options: Any) -> Any:
    """A model with X-LoRA, whose classifier is the same in both libraries."""
    config = library.XLoraConfig(hidden_size=16, adapters=dict(experts), task_type="CAUSAL_LM", **options)
    model = library.get_peft_model(base(), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "internal_xlora_classifier" in name:
                parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()
