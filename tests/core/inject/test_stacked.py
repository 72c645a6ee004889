"""Targets that were experts' projections before transformers stacked them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import afina
from afina.core.inject.stacked import stacks
from afina.errors import TargetError

from ..tiny import llama

IDS = torch.arange(8)[None]
SIZES = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 2, "head_dim": 8, "num_experts_per_tok": 2}  # fmt: skip


def mixture(kind: str) -> Any:
    torch.manual_seed(0)
    own = {"intermediate_size": 24}
    own |= {"num_local_experts": 3} if kind == "Mixtral" else {"num_experts": 3, "moe_intermediate_size": 8}
    config = getattr(transformers, f"{kind}Config")(**SIZES, **own)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def filled(package: Any, model: Any) -> Any:
    for number, (_, tensor) in enumerate(sorted(package.get_peft_model_state_dict(model).items())):
        tensor.data.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
    return model.eval()


CHOICES: list[tuple[str, Any]] = [
    ("Mixtral", "all-linear"),
    ("Mixtral", ["q_proj", "w1", "w2", "w3"]),
    ("Mixtral", ["w2"]),
    ("Qwen3Moe", ["q_proj", "gate_proj", "up_proj", "down_proj"]),
    ("Qwen3Moe", ["q_proj", "gate"]),
    ("Qwen3Moe", r".*\.(q_proj|gate_proj|up_proj|down_proj)"),
    ("Qwen3Moe", r".*\.(q_proj|gate)"),
    ("Qwen3Moe", r".*\.q_proj"),
]


@pytest.mark.parametrize(("kind", "targets"), CHOICES, ids=str)
def test_experts_are_adapted_as_in_the_reference(kind: str, targets: Any, tmp_path: Path) -> None:
    plain = mixture(kind)(IDS).logits
    models = {}
    for package in (afina, peft):
        config = package.LoraConfig(target_modules=targets, r=4, lora_alpha=6)
        models[package.__name__] = filled(package, package.get_peft_model(mixture(kind), config))
    ours, theirs = models["afina"], models["peft"]
    out = theirs(IDS).logits
    torch.testing.assert_close(ours(IDS).logits, out, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(out, plain, atol=1e-4)
    assert ours.peft_config["default"].rank_pattern == theirs.peft_config["default"].rank_pattern
    ours.save_pretrained(tmp_path)
    again = afina.PeftModel.from_pretrained(mixture(kind), tmp_path)
    torch.testing.assert_close(again(IDS).logits, ours(IDS).logits)
    there = peft.PeftModel.from_pretrained(mixture(kind), tmp_path)
    torch.testing.assert_close(there(IDS).logits, out, atol=1e-5, rtol=1e-5)


def test_part_of_what_is_stacked_is_refused() -> None:
    with pytest.raises(TargetError, match="one parameter") as caught:
        afina.get_peft_model(mixture("Qwen3Moe"), afina.LoraConfig(target_modules=["q_proj", "up_proj"]))
    assert "gate_proj too" in str(caught.value)


def test_layers_without_experts_keep_what_was_asked_for() -> None:
    model = afina.get_peft_model(llama(), afina.LoraConfig(target_modules=["gate_proj", "up_proj"]))
    assert model.peft_config["default"].target_modules == ["gate_proj", "up_proj"]
    assert not model.peft_config["default"].target_parameters
    assert stacks(llama()) == stacks(torch.nn.Linear(2, 2)) == []


def test_other_methods_keep_their_targets() -> None:
    config = afina.LoHaConfig(target_modules=["q_proj", "gate_proj", "up_proj"])
    assert afina.get_peft_model(mixture("Qwen3Moe"), config).peft_config["default"].target_modules == [
        "q_proj", "gate_proj", "up_proj"
    ]  # fmt: skip


def test_dense_layers_beside_experts_are_adapted_too() -> None:
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(**{**SIZES, "num_hidden_layers": 2}, num_experts=3, moe_intermediate_size=8,
                                         intermediate_size=24, mlp_only_layers=[0])  # fmt: skip
    model = afina.get_peft_model(
        transformers.Qwen3MoeForCausalLM(config),
        afina.LoraConfig(target_modules=["gate_proj", "up_proj", "down_proj"]),
    )
    adapted = {n.split(".adapters")[0].split(".layers.")[1] for n, p in model.named_parameters() if p.requires_grad}
    assert {"0.mlp.gate_proj", "0.mlp.up_proj", "0.mlp.down_proj", "1.mlp.experts"} <= adapted
