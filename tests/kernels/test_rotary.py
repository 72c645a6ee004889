"""Rotary positions by the kernel: where the model's function is this formula, and the step is the plain step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import CohereConfig, CohereForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

import afina
from afina.kernels import rotary
from afina.kernels.rotary import fuse_rotary

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
IDS = torch.arange(3, 27).view(2, 12)
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("native_library")


def llama(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, pad_token_id=0)).to(dtype)


def step(model: Any) -> tuple[Any, dict[str, Any]]:
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    own = rotary.rotate
    monkeypatch.setattr(rotary, "rotate", lambda *a: found.append(1) or own(*a))
    return found


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_step_is_the_plain_step(compute, calls):
    found = []
    for fast in (False, True):
        torch.manual_seed(1)
        model = afina.get_peft_model(llama(compute), afina.LoraConfig(r=4, init_lora_weights=False))
        if fast:
            assert fuse_rotary(model, compute, CPU) == 2
            assert fuse_rotary(model, compute, CPU) == 0  # not twice
        found.append(step(model.train()))
    exact = {torch.float32: {"rtol": 1e-4, "atol": 1e-6}, torch.bfloat16: {"rtol": 0.05, "atol": 0.002}}[compute]
    torch.testing.assert_close(*found, **exact)
    assert len(calls) == 2


def test_generation_and_copies_are_the_models_own(calls):
    model = llama()
    expected = model.generate(IDS, max_new_tokens=5, do_sample=False)
    fuse_rotary(model, torch.float32, CPU)
    assert torch.equal(copy.deepcopy(model).generate(IDS, max_new_tokens=5, do_sample=False), expected)
    assert calls


def test_other_formulas_are_left(monkeypatch):
    torch.manual_seed(0)
    assert fuse_rotary(CohereForCausalLM(CohereConfig(**SIZES)), torch.float32, CPU) == 0  # neighbours, not halves
    assert fuse_rotary(llama(torch.float16), torch.float16, CPU) == 0
    rotary._with_kernel.cache_clear()
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin: (2 * q, k))
    assert fuse_rotary(llama(), torch.float32, CPU) == 0
    rotary._with_kernel.cache_clear()


def test_whether_angles_suit_a_device_is_asked_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    turned = []
    monkeypatch.setattr(rotary.backends, "reads_all_angles", lambda device: device.type == "cpu")
    monkeypatch.setattr(rotary, "_has_equal_halves", lambda angles: False)
    monkeypatch.setattr(rotary.backends, "can_turn", lambda *_: True)
    monkeypatch.setattr(rotary, "rotate", lambda q, *_: turned.append(q.device.type))
    rotary._with_kernel.cache_clear()
    function = rotary._with_kernel(modeling_llama.LlamaAttention).__globals__["apply_rotary_pos_emb"]
    for device in ("cpu", "meta", "cpu"):  # the device without data stands for a GPU
        heads, angles = torch.ones(1, 2, 3, 8, device=device), torch.ones(1, 3, 8, device=device)
        function(heads, heads, angles, angles)
    assert turned == ["cpu", "cpu"]
    rotary._with_kernel.cache_clear()
