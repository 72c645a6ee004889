"""RMSNorm layers are known by what they compute; a step with the kernel is the plain step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

import afina
from afina.kernels import norm
from afina.kernels.norm import fuse_norms

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = torch.arange(3, 27).view(2, 12)

pytestmark = pytest.mark.usefixtures("native_library")


def llama(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).to(dtype)
    for layer in model.model.layers:
        nn.init.normal_(layer.input_layernorm.weight)
    return model


def step(model: Any) -> tuple[Any, dict[str, Any]]:
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_step_is_the_plain_step(compute, monkeypatch):
    calls, own = [], norm.rms_norm
    monkeypatch.setattr(norm, "rms_norm", lambda *a: calls.append(1) or own(*a))
    found = []
    for fast in (False, True):
        model = afina.get_peft_model(llama(compute), afina.LoraConfig(r=4, init_lora_weights=False))
        if fast:
            assert fuse_norms(model) == 5
            assert fuse_norms(model) == 0  # not twice
        found.append(step(model.train()))
    # In 16 bits the gradients are rounded once here and several times there.
    exact = {torch.float32: {"rtol": 1e-4, "atol": 1e-6}, torch.bfloat16: {"rtol": 0.05, "atol": 0.002}}[compute]
    torch.testing.assert_close(*found, **exact)
    assert len(calls) == 5


def test_trained_weights_get_the_plain_gradients():
    plain, fast = llama().train(), llama().train()
    assert fuse_norms(fast) == 5
    torch.testing.assert_close(step(fast), step(plain), rtol=1e-4, atol=1e-6)


class Doubled(nn.Module):
    """Looks like the others."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Plain(Doubled):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2


class Gated(Plain):
    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x if gate is None else x * gate)


def test_what_the_kernel_does_not_know_is_the_layers_own():
    layer, x, gate = Gated(), torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    own = layer(x, gate)
    assert fuse_norms(layer) == 1
    assert torch.equal(layer(x, gate), own)
    assert torch.equal(layer(x, gate=gate), own)
    with pytest.raises(RuntimeError, match="size"):
        layer(torch.randn(2, 3, 16))


def test_only_the_formula_counts():
    torch.manual_seed(0)
    gemma = Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, num_key_value_heads=2))  # 1 + weight
    assert fuse_norms(gemma) == 0
    assert fuse_norms(nn.Sequential(Doubled(), Plain(), nn.LayerNorm(8), nn.BatchNorm1d(8), Plain().half())) == 1
