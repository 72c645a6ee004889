"""What LoRA's variants do in training: penalties, noise, approximate gradients; and what they refuse."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import afina
from afina.core.hosts.host import hosts
from afina.errors import ConfigError
from afina.methods.reparam.velora import pieces

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))


class WithLoss(nn.Module):
    """A layer, and a loss as language models return it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 12, bias=False)

    def forward(self, x: torch.Tensor) -> Any:
        out = self.layer(x)
        return SimpleNamespace(out=out, loss=out.square().mean())


def model(**options: Any) -> Any:
    config = afina.LoraConfig(r=4, lora_alpha=4, target_modules=["layer"], init_lora_weights=False, **options)
    return afina.get_peft_model(WithLoss(), config)


def adapter(of: Any) -> Any:
    return next(h for _, h in hosts(of)).adapter("default")


def test_kasa_cuts_the_smallest_components_and_keeps_the_bases_bits() -> None:
    mine = model(kasa_config={})
    with torch.no_grad():
        adapter(mine).lora_B.zero_()
    weight = WithLoss().layer.weight.detach()
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    kept = (U[:, :4] * S[:4]) @ Vh[:4]
    assert torch.allclose(mine.eval()(X).out, X @ kept.T, atol=1e-5)
    assert torch.equal(mine.base_model.model.layer.base_layer.weight, weight)


def test_kasas_penalty_is_part_of_the_training_loss() -> None:
    mine = model(kasa_config={"beta": 2.0, "gamma": 3.0}).train()
    a = adapter(mine)
    A, B, d = a.lora_A, a.lora_B, a.lora_diag
    one = torch.eye(4)
    penalty = 2 * (d**2).sum() + 3 * ((B.T @ B - one).norm() + (A @ A.T - one).norm())
    out = mine(X)
    assert torch.allclose(out.loss, out.out.square().mean() + penalty)
    out = mine.eval()(X)
    assert torch.equal(out.loss, out.out.square().mean())


def test_monteclora_draws_around_its_mean_with_the_stated_variance() -> None:
    mine = model(monteclora_config={"num_samples": 3, "sample_scaler": 0.5}).train()
    a = adapter(mine)
    mean = mine.eval()(X).out
    mine.train()
    torch.manual_seed(5)
    with torch.no_grad():
        a.std_prior.fill_(0.3)
        a.expert_weights_prior.fill_(8.0)  # concentrations so high that the mixture is uniform
        draws = torch.stack([mine(X).out for _ in range(4000)])
    # Var = c² · ||π||² · E[v] · ||x||² · Σ_r B_or², with ||π||² = 1/3 and E[v] = r e^(2σ).
    variance = 0.25 / 3 * 4 * torch.tensor(0.6).exp() * X.square().sum(1)[:, None] * a.lora_B.square().sum(1)
    assert torch.allclose(draws.var(0), variance, rtol=0.25)  # 4000 draws; v itself varies from draw to draw
    assert ((draws.mean(0) - mean).abs() < 5 * (variance / 4000).sqrt()).all()


def test_monteclora_trains_its_sampler() -> None:
    mine = model(monteclora_config={"use_entropy": True}).train()
    mine(X).loss.backward()
    a = adapter(mine)
    assert a.std_prior.grad.abs().min() > 0
    assert a.expert_weights_prior.grad.abs().min() > 0


def test_monteclora_has_no_divergence_from_its_own_prior() -> None:
    a = adapter(model(monteclora_config={"dirichlet_prior": 1.5, "kl_loss_weight": 1.0}))
    with torch.no_grad():
        a.expert_weights_prior.fill_(torch.tensor(1.5).log())
        a.std_prior.zero_()
        a._variance = lambda: torch.ones(4)
        assert a.penalty().abs() < 1e-4
        a.expert_weights_prior[0] += 1
        assert a.penalty() > 0.01


def test_velora_keeps_the_component_along_the_mean_piece() -> None:
    mine, plain = model(velora_config={"num_groups": 4, "scale": 1.5}).train(), model().train()
    with torch.no_grad():
        for name in ("lora_A", "lora_B"):
            getattr(adapter(plain), name).copy_(getattr(adapter(mine), name))
    x, y = X.clone().requires_grad_(True), X.clone().requires_grad_(True)
    out, expected = mine(x), plain(y)
    assert torch.allclose(out.out, expected.out, atol=1e-6)
    out.loss.backward()
    expected.loss.backward()
    assert torch.allclose(x.grad, y.grad, atol=1e-6)
    assert torch.allclose(adapter(mine).lora_B.grad, adapter(plain).lora_B.grad, atol=1e-6)
    v = nn.functional.normalize(pieces(X, 4).mean((0, 1)), dim=0)
    kept = ((pieces(X, 4) @ v)[..., None] * v).flatten(1) * 1.5
    gradient = (2 * expected.out / expected.out.numel()).detach() @ adapter(plain).lora_B.detach()
    assert torch.allclose(adapter(mine).lora_A.grad, gradient.T @ kept, atol=1e-5)
    assert not torch.allclose(adapter(mine).lora_A.grad, adapter(plain).lora_A.grad, atol=1e-3)


@pytest.mark.parametrize(("init_type", "moves"), [("batch_average", True), ("batch_average_once", False)])
def test_velora_remembers_a_direction(init_type: str, moves: bool) -> None:
    mine = model(velora_config={"num_groups": 4, "init_type": init_type}).train()
    mine(X)
    first = adapter(mine).lora_velora_embed.clone()
    mine(X.flip(0)[:2] + 1)
    assert first.norm().item() == pytest.approx(1)
    assert torch.equal(adapter(mine).lora_velora_embed, first) is not moves


def test_qalora_sees_the_means_of_groups() -> None:
    mine = model(use_qalora=True, qalora_group_size=4).eval()
    a = adapter(mine)
    means = X.view(6, 2, 4).mean(-1) * 2
    assert torch.allclose(mine(X).out, WithLoss().layer(X) + means @ a.lora_A.T @ a.lora_B.T, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"use_bdlora": {"target_modules_bd_a": ["other"]}},
        {"use_bdlora": {"target_modules_bd_a": ["layer"], "target_modules_bd_b": ["layer"]}},
        {"use_bdlora": {"target_modules_bd_a": ["layer"], "nblocks": 3}},
        {"use_qalora": True, "qalora_group_size": 3},
        {"kasa_config": {}, "use_dora": True},
        {"velora_config": {"num_groups": 0}},
        {"velora_config": {"init_type": "mean"}},
        {"monteclora_config": {"samples": 3}},
        {"alora_invocation_tokens": []},
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        model(**options)


def test_starts_made_for_two_plain_factors_are_refused() -> None:
    with pytest.raises(ConfigError, match="kasa_config"):
        afina.LoraConfig(kasa_config={}, init_lora_weights="pissa")
