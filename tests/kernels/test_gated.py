"""Gated feed-forward parts: the formula's gradients with half of the wide tensors kept, and only where they have the
form."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import afina
from afina.kernels import gated as module
from afina.kernels.gated import gated, keep_less
from afina.kernels.speed import speed_up

IDS = torch.arange(3, 27).view(2, 12)
CPU = torch.device("cpu")


def llama(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                        num_attention_heads=4, **options)).to(dtype)  # fmt: skip


def step(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("trained", [True, False])
def test_gradients_are_the_formulas(trained: bool) -> None:
    torch.manual_seed(0)
    gate, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(4, 5, dtype=torch.float64, requires_grad=trained)

    def run(gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        return gated(gate, up, lambda h: F.linear(h, weight) + h.square().sum())

    plain = F.linear(F.silu(gate) * up, weight) + (F.silu(gate) * up).square().sum()
    torch.testing.assert_close(run(gate, up, weight), plain)
    assert torch.autograd.gradcheck(run, (gate, up, weight))


def test_product_is_not_kept_for_the_backward_pass() -> None:
    gate, up, weight = (torch.randn(4, 4, requires_grad=True) for _ in range(3))
    seen: list[Any] = []

    def down(h: Tensor) -> Tensor:
        seen.append(weakref.ref(h))
        return F.linear(h, weight)

    out = gated(gate, up, down)
    assert seen[0]() is None
    out.sum().backward()
    torch.testing.assert_close(weight.grad, (F.silu(gate) * up).sum(0).expand(4, 4))


def test_of_a_product_that_is_read_in_parts_none_is_kept_and_the_gradients_are_the_formulas() -> None:
    torch.manual_seed(0)
    gate, up = (torch.randn(7, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weights = [torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def down(h: Tensor) -> Tensor:
        return torch.cat([F.linear(h[:3], weights[0]), F.linear(h[3:], weights[1])])

    kept: list[torch.Size] = []

    def parts(gate: Tensor, up: Tensor) -> Tensor:
        product = module._Kept.product

        def counted(self: Any, part: slice, shape: torch.Size) -> Tensor:
            kept.append(shape)
            return product(self, part, shape)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module._Kept, "product", counted)
            out = gated(gate, up, down)
            out.square().sum().backward()
        return out.detach()

    torch.testing.assert_close(parts(gate, up), down(F.silu(gate) * up).detach())
    assert kept == [torch.Size([4, 5]), torch.Size([3, 5])]
    found = [t.grad for t in (gate, up, *weights)]
    for t in (gate, up, *weights):
        t.grad = None
    down(F.silu(gate) * up).square().sum().backward()
    torch.testing.assert_close(found, [t.grad for t in (gate, up, *weights)])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_model_makes_the_same_step(monkeypatch: pytest.MonkeyPatch, checkpointing: bool, either: bool) -> None:
    calls: list[int] = []
    own = module.gated
    monkeypatch.setattr(module, "gated", lambda *a: calls.append(1) or own(*a))
    found = []
    for fast in (False, True):
        model = afina.get_peft_model(llama(), afina.LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM",
                                                               target_modules="all-linear")).train()  # fmt: skip
        if fast:
            assert "2 parts keep half" in " ".join(speed_up(model))
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
            model.get_base_model().enable_input_require_grads()
        torch.manual_seed(0)
        found.append(step(model))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    # Checkpointing has its own way of keeping less.
    assert len(calls) == (0 if checkpointing else 2)


class Clamped(nn.SiLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(max=0.1)


@pytest.mark.parametrize(("model", "count"), [
    (llama(), 2), (llama(hidden_act="gelu"), 0), (llama(mlp_bias=True), 2),
], ids=["silu", "gelu", "bias"])  # fmt: skip
def test_only_parts_of_the_form_are_changed(model: Any, count: int) -> None:
    assert keep_less(model, model.dtype, CPU) == count
    assert keep_less(model, model.dtype, CPU) == 0  # not twice


def test_16_bits_keep_less_where_there_is_a_kernel(either: bool) -> None:
    assert keep_less(llama(torch.bfloat16), torch.bfloat16, CPU) == (2 if either else 0)


def test_part_that_only_looks_so_is_left() -> None:
    model = llama()
    model.model.layers[0].mlp.act_fn = Clamped()
    assert keep_less(model, model.dtype, CPU) == 1
    assert not hasattr(type(model.model.layers[0].mlp), "plain_class")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_gradient_checkpointing_nothing_wide_waits_for_the_backward_pass(checkpointing: bool) -> None:
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=57, num_hidden_layers=3,
                                              num_attention_heads=4, use_cache=False)).train()  # fmt: skip
    model.enable_input_require_grads()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert keep_less(model, torch.float32, CPU)
    loss = model(input_ids=IDS, labels=IDS).loss
    gc.collect()
    wide = {t.data_ptr() for t in gc.get_objects() if isinstance(t, Tensor) and t.shape[-1:] == (57,)}
    wide -= {p.data_ptr() for p in model.parameters()}
    assert len(wide) == 0 if checkpointing else len(wide) > 0
    loss.backward()
