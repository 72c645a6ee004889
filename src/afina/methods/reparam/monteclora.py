"""MonteCLoRA: A as the mean of a learned mixture of Gaussians, from which training draws.

    A' = A + c · Σ_k π_k z_k √v,   z_k ~ N(0, I),   v_j = e^(2 σ_j) χ²_r,   π ~ softmax(N(μ, D))
    loss += λ · (KL of π, of the Wishart and of the Gaussian from their priors) [+ Σ π_k², with use_entropy]

Sengupta et al. 2024, arXiv 2411.04358. v is the diagonal of a Wishart matrix with r degrees of freedom and scale
e^(2σ); μ and D are Laplace's approximation of a Dirichlet distribution with concentrations e^ω. Given π, Σ π_k z_k is
one Gaussian of standard deviation ||π||, and drawn as that, num_samples times cheaper. Evaluation is plain LoRA.
Unlike in the reference, the penalty is part of the loss that the model returns, and the divergence between Dirichlet
distributions has the sign of its log normalisers right. Trainable: r · (in + out + 1) + num_samples a layer. Mergeable.
Layers: Linear, Conv1D.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...core.hosts.adapter import Site
from ...core.hosts.view import View
from .lora import Lora
from .lora_config import LoraConfig

_SAMPLER = "lora_monteclora_sampler."
_FLOOR = 1e-3
"""The smallest variance."""


@Lora.variant(lambda config: config.monteclora_config is not None)
class MonteCLora(Lora):
    """`std_prior` σ: (r,), `expert_weights_prior` ω: (num_samples,)."""

    kinds = frozenset({"linear"})
    has_penalty = True

    def __init__(self, site: Site, config: LoraConfig) -> None:
        super().__init__(site, config)
        assert config.monteclora_config is not None
        self.options = config.monteclora_config
        self.std_prior, self.expert_weights_prior = site.empty(self.r), site.empty(self.options.num_samples)
        for parameter in (self.std_prior, self.expert_weights_prior):
            nn.init.uniform_(parameter)

    def _variance(self) -> Tensor:
        """A draw of v: (r,)."""
        # The diagonal of a Wishart matrix of r degrees of freedom: independent sums of r squared normals.
        chi = torch.randn(self.r, self.r, device=self.std_prior.device).square().sum(0)
        return ((2 * self.std_prior.float()).exp() * chi).clamp_min(_FLOOR)

    def _weights(self) -> Tensor:
        """A draw of π: (num_samples,)."""
        count = self.options.num_samples
        log_alpha = self.expert_weights_prior.float()
        inverse = (-log_alpha).exp()
        # For a single component the formula of the variance is not positive, and π is 1 whatever is drawn.
        variance = (inverse * (1 - 2 / count) + inverse.sum() / count**2).clamp_min(0)
        return torch.softmax(log_alpha - log_alpha.mean() + variance.sqrt() * torch.randn_like(log_alpha), dim=0)

    def forward(self, inner: View, x: Any) -> Any:
        out = super().forward(inner, x)
        if not self.training:
            return out
        spread_R = self.options.sample_scaler * torch.linalg.vector_norm(self._weights()) * self._variance().sqrt()
        noise = torch.randn_like(self.lora_A) * spread_R[:, None].to(self.lora_A.dtype)
        return out + self.scaling * inner.base.low_rank(self.dropped(x), noise, self.lora_B)

    def penalty(self) -> Tensor:
        options, rank = self.options, self.r
        alpha, prior = self.expert_weights_prior.float().exp(), torch.tensor(options.dirichlet_prior)
        mixture = (
            torch.lgamma(alpha.sum()) - torch.lgamma(alpha).sum()
            - torch.lgamma(prior * options.num_samples) + options.num_samples * torch.lgamma(prior)
            + ((alpha - prior) * (torch.digamma(alpha) - torch.digamma(alpha.sum()))).sum()
        )  # fmt: skip
        log_scale = 2 * self.std_prior.float()
        wishart = 0.5 * rank * (log_scale.exp() - log_scale - 1).sum()
        variance = self._variance()
        gaussian = 0.5 * options.num_samples * (variance - variance.log() - 1).sum()
        loss = options.kl_loss_weight * (mixture + wishart + gaussian)
        return loss + self._weights().square().sum() if options.use_entropy else loss

    @property
    def disk_names(self) -> Mapping[str, str]:  # type: ignore[override]
        own = {n: f"{_SAMPLER}{n}" for n in ("std_prior", "expert_weights_prior")}
        return {**super().disk_names, **own}

    def disk_state(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reference's file also has its last draw of v and π; evaluation does not need them: the means stand in."""
        mean_v = self.r * (2 * own["std_prior"]).exp()
        return {
            **super().disk_state(own),
            f"{_SAMPLER}gaussian_var_prior": torch.diag(mean_v).detach(),
            f"{_SAMPLER}expert_weights": torch.softmax(own["expert_weights_prior"], dim=0).detach(),
        }
