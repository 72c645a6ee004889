"""Norms, gated parts and rotary positions run by the backend of their tensors' device; a GPU's has a stand-in."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import afina
from afina.kernels import backends, rotary, speed
from afina.kernels.cpu.native import rowwise as cpu
from afina.kernels.cuda import rowwise as cuda
from afina.kernels.cuda import trial

IDS = torch.arange(3, 27).view(2, 12)


@pytest.fixture
def backend(monkeypatch):
    """What a GPU's kernels do, gradients in the place of gate and up included; notes what was called."""
    calls = []

    def rms_norm(x, weight, eps):
        calls.append("norm")
        kept = torch.rsqrt(x.square().mean(-1) + eps).flatten()
        return weight * x * kept.view(*x.shape[:-1], 1), kept

    def rms_norm_backward(g, x, weight, kept, wants_weight=False):
        rms = kept.view(*x.shape[:-1], 1)
        y, gw = x * rms, g * weight
        return rms * (gw - y * (gw * y).mean(-1, keepdim=True)), (g * y).flatten(0, -2).sum(0) if wants_weight else None

    def gated_backward(g, gate, up):
        calls.append("gated")
        share = torch.sigmoid(gate)
        dup = g * gate * share
        gate.data.copy_(g * up * share * (1 + gate * (1 - share)))
        up.data.copy_(dup)
        return gate, up

    def turn(q, k, cos, sin, back=False):
        calls.append("turn")
        return rotary.formula(q, k, cos, -sin if back else sin)

    made = SimpleNamespace(
        OVERWRITES=True, fits=lambda *t: all(x.is_contiguous() for x in t), is_plain=lambda x: True,
        rms_norm=rms_norm, rms_norm_backward=rms_norm_backward, gated=lambda g, u: F.silu(g) * u,
        gated_backward=gated_backward, turn=turn,
    )  # fmt: skip
    monkeypatch.setattr(backends, "on", lambda device: made)
    return calls


def step(fast):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    model = afina.get_peft_model(LlamaForCausalLM(config), afina.LoraConfig(init_lora_weights=False)).train()
    if fast:
        speed.speed_up(model)
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward(retain_graph=True)
    return loss, [p.grad for p in model.parameters() if p.grad is not None]


def test_a_step_by_a_gpus_backend_is_the_plain_step_and_a_second_backward_pass_is_refused(backend):
    plain, expected = step(False)
    assert not backend
    loss, found = step(True)
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert {*backend} == {"norm", "gated", "turn"}
    with pytest.raises(RuntimeError, match=r"second backward pass.*training.fast=false"):
        loss.backward()


def test_the_device_decides_which_backend_serves():
    assert backends.on(torch.device("cuda", 1)) is cuda
    assert backends.on(torch.device("cpu")) is cpu
    assert not backends.fits("norms", torch.empty(4, 8, device="meta"))


def test_a_gpus_kernel_serves_only_where_its_trial_said_so(monkeypatch):
    said = {"norms": "", "feed-forward": "too slow", "rotary positions": ""}
    monkeypatch.setattr(trial, "why_not", lambda operation, device, dtype: said[operation])
    device = torch.device("cuda:0")
    for operation, why in said.items():
        assert backends.why_not(operation, device, torch.bfloat16) == why
        assert backends.why_not(operation, torch.device("cpu"), torch.bfloat16) == ""
    x = SimpleNamespace(device=device, dtype=torch.bfloat16)
    monkeypatch.setattr(cuda, "fits", lambda *t: True)
    assert [backends.fits(operation, x) for operation in said] == [True, False, True]
    monkeypatch.setattr(cuda, "is_plain", lambda t: True)
    heads, angles = SimpleNamespace(**vars(x)), SimpleNamespace(**vars(x))
    heads.shape, heads.dim = torch.Size((2, 3, 5, 8)), lambda: 4
    angles.shape, angles.dim = torch.Size((1, 5, 8)), lambda: 3
    for said["rotary positions"] in ("", "wrong"):
        assert backends.can_turn(heads, heads, angles, angles) == (said["rotary positions"] == "")


def test_speed_up_tells_why_a_gpus_kernel_is_off(monkeypatch):
    monkeypatch.setattr(speed, "_device", lambda base: torch.device("cuda:0"))
    monkeypatch.setattr(trial, "why_not", lambda operation, device, dtype: "" if operation == "norms" else "too slow")
    said = speed._native(torch.nn.Linear(2, 2))
    assert said == ["feed-forward: off, because too slow", "rotary positions: off, because too slow"]
    assert speed.are_on(said) == 0
