"""Experts with an update that is never formed: every way in which mixtures read them gives what the sum gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import afina
from afina.methods.reparam import lora_form, updated_experts
from afina.methods.reparam.lora import Lora
from afina.methods.reparam.updated_experts import UpdatedExperts, updated

from ...core.tiny import nudge

EXPERTS, OUT, IN, RANK = 3, 8, 16, 5
OFFSETS = torch.tensor([2, 2, 7], dtype=torch.int32)
IDS = torch.tensor([2, 0, 0, 1])


def parts(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = ((EXPERTS, OUT, IN), (EXPERTS, OUT, RANK), (EXPERTS, RANK, IN))
    w, left, right = (torch.randn(s, generator=draw, dtype=torch.float64).to(dtype) for s in shapes)
    return w, left, right


def rows(count: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


USES = {
    "grouped": lambda w: F.grouped_mm(rows(7, IN, torch.float32), w.transpose(-2, -1), offs=OFFSETS),
    "grouped, as it is stored": lambda w: F.grouped_mm(rows(7, OUT, torch.float32), w, offs=OFFSETS),
    "chosen experts, batched": lambda w: torch.bmm(w[IDS], rows(4, IN, w.dtype).unsqueeze(-1)).squeeze(-1),
    "rows, batched": lambda w: torch.bmm(rows(4, OUT, w.dtype).unsqueeze(1), w[IDS]).squeeze(1),
    "one by one": lambda w: torch.stack([F.linear(rows(4, IN, w.dtype), w[e], torch.ones(OUT, dtype=w.dtype))
                                         for e in range(EXPERTS)]),
    "one by one, by a tensor": lambda w: F.linear(rows(4, IN, w.dtype), w[IDS[0]]),
    "matrix product": lambda w: rows(4, OUT, w.dtype) @ w[1],
    "of all rows": lambda w: torch.matmul(rows(4, OUT, w.dtype).expand(EXPERTS, 4, OUT), w),
    "turned": lambda w: rows(4, IN, w.dtype) @ w.mT[2],
    "cast": lambda w: rows(4, OUT, torch.float64) @ w.to(torch.float64)[1],
}  # fmt: skip


@contextmanager
def never_formed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:

        def refuse(value: Any) -> Any:
            assert not isinstance(value, UpdatedExperts), "the sum was formed"
            return value

        patch.setattr(updated_experts, "_summed", refuse)
        yield


@pytest.mark.parametrize("use", USES)
def test_products_are_those_of_the_sum_without_forming_it(use: str) -> None:
    dtype = torch.float32 if use.startswith("grouped") else torch.float64
    w, left, right = (part.clone().requires_grad_() for part in parts(dtype))
    expected = USES[use](w + left @ right)
    with never_formed():
        found = USES[use](updated(w, left, right))
    assert type(found) is Tensor
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    assert torch.allclose(found, expected, atol=tolerance)
    assert not torch.allclose(USES[use](w), expected, atol=1e-2)
    seed = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(expected)
    for a, b in zip(torch.autograd.grad(found, (w, left, right), seed),
                    torch.autograd.grad(expected, (w, left, right), seed), strict=True):  # fmt: skip
        assert torch.allclose(a, b, atol=10 * tolerance)


OTHER = {
    "sum": lambda w: w.sum(), "part of an expert": lambda w: w[:, :3],
    "by a mask": lambda w: w[torch.tensor([True, False, True])],
    "plus": lambda w: w + 1, "einsum": lambda w: torch.einsum("eoi,ei->eo", w, torch.ones(EXPERTS, IN, dtype=w.dtype)),
    "expert and row": lambda w: w[1, 2], "other dimensions": lambda w: w.transpose(0, 1),
}  # fmt: skip


@pytest.mark.parametrize("use", OTHER)
def test_everything_else_is_done_with_the_sum(use: str) -> None:
    w, left, right = parts()
    found = OTHER[use](updated(w, left, right))
    assert type(found) is Tensor
    assert torch.allclose(found, OTHER[use](w + left @ right))


def test_it_looks_like_the_frozen_experts() -> None:
    w, left, right = parts(torch.bfloat16)
    made = updated(w, left.float(), right.float())
    assert (made.shape, made.dtype, made.device, made.dim(), len(made)) == (w.shape, w.dtype, w.device, 3, EXPERTS)
    assert made.right.dtype == torch.bfloat16
    assert made.left.shape[-1] == 8  # ranks of zeros, so that rows are of 16 bytes


def mixture(kind: str, implementation: str) -> nn.Module:
    from transformers import (
        GptOssConfig,
        GptOssForCausalLM,
        MixtralConfig,
        MixtralForCausalLM,
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
    )  # fmt: skip

    small = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
             "head_dim": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4,
             "num_experts_per_tok": 2}  # fmt: skip
    torch.manual_seed(0)
    if kind == "mixtral":
        model = MixtralForCausalLM(MixtralConfig(**small))
    elif kind == "qwen":
        own = {"num_experts": 4, "moe_intermediate_size": 24, "mlp_only_layers": []}
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**small, **own))
    else:
        model = GptOssForCausalLM(GptOssConfig(**small))
    model.set_experts_implementation(implementation)
    return model.eval()


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("kind", ["mixtral", "qwen", "gpt-oss"])
def test_mixtures_are_what_they_are_with_the_sum_in_every_way_of_running_experts(
    kind: str, implementation: str
) -> None:
    config = afina.LoraConfig(r=3, target_modules=[], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    model = nudge(afina.get_peft_model(mixture(kind, implementation), config)).eval()
    ids = torch.arange(12).reshape(2, 6)
    with never_formed():
        out = model(input_ids=ids, labels=ids)
    out.loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    with pytest.MonkeyPatch.context() as patch:  # the sum, formed in every layer
        patch.setattr(Lora, "is_product", property(lambda self: False))
        whole = model(input_ids=ids, labels=ids)
        whole.loss.backward()
    assert torch.allclose(out.logits, whole.logits, atol=1e-5)
    with model.disable_adapter():
        assert not torch.allclose(out.logits, model(input_ids=ids).logits, atol=1e-3)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(found[name], parameter.grad, atol=1e-5), name
            assert parameter.grad.abs().max() > 0


def test_a_rehearsal_without_numbers_runs_them_as_a_run_does() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    config = afina.LoraConfig(r=3, target_modules=[], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    made = []
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True), never_formed():
        patch.setattr(lora_form, "updated", lambda *parts: made.append(1) or updated(*parts))
        model = afina.get_peft_model(mixture("mixtral", "batched_mm"), config)
        ids = torch.ones(2, 6, dtype=torch.long)
        model(input_ids=ids, labels=ids).loss.backward()
    assert len(made) == 2 * 2  # of every layer
