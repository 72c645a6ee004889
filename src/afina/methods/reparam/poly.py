"""Poly: a mixture of several LoRAs ("skills") with weights that every task learns for itself.

    y = W x + (1 / r) · (Σ_k α_tk B_k) (Σ_k α_tk A_k) x,   α_t = σ(logits_t) / Σ σ(logits_t);   MHR: a mixture per split

Ponti et al. 2022, arXiv 2202.13914; multi-head routing: Caccia et al. 2022, arXiv 2211.03831. In training the weights
are drawn from a relaxed Bernoulli distribution. The model's forward takes `task_ids` (batch,). Not mergeable.
Trainable: skills · r (in + out) + tasks · splits · skills a layer. Layers: Linear, Conv1D.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Activation, Site
from ...core.hosts.view import View
from ...errors import ConfigError


@dataclass(kw_only=True)
class PolyConfig(LayerConfig):
    """Configuration of Poly; fields as in the reference.

    Attributes:
        r: rank of a skill.
        poly_type: "poly" is all there is.
        n_tasks: how many there are.
        n_skills: LoRAs that are mixed.
        n_splits: parts of inputs and outputs with mixtures of their own (more than 1 is multi-head routing).
    """

    r: int = bounded(8, ge=1, le=2**20)
    init_weights: bool = True
    poly_type: Literal["poly"] = "poly"
    n_tasks: int = bounded(1, ge=1)
    n_skills: int = bounded(4, ge=1)
    n_splits: int = bounded(1, ge=1)

    default_learning_rate: ClassVar[float] = 1e-3


@register("POLY", PolyConfig)
class Poly(Activation):
    """A: (splits, skills, in / splits, r); B: (splits, skills, r, out / splits); logits: (tasks, splits · skills)."""

    prefix = "poly_"
    kinds = frozenset({"linear"})
    inputs = frozenset({"task_ids"})
    disk_names: ClassVar[Mapping[str, str]] = {"poly_router": "poly_router.module_logits"}

    def __init__(self, site: Site, config: PolyConfig) -> None:
        super().__init__(site, config)
        out, width = site.base.shape
        self.splits, self.skills = config.n_splits, config.n_skills
        if out % self.splits or width % self.splits:
            raise ConfigError("must divide inputs and outputs", where=f"n_splits at {site.name}", got=self.splits,
                              expected=f"a divisor of {width} and {out}")  # fmt: skip
        self.poly_lora_A = site.empty(self.splits, self.skills, width // self.splits, config.r)
        self.poly_lora_B = site.zeros(self.splits, self.skills, config.r, out // self.splits)
        bound = math.sqrt(3 / (width // self.splits))
        nn.init.uniform_(self.poly_lora_A, -bound / math.sqrt(3), bound / math.sqrt(3))
        if not config.init_weights:
            nn.init.normal_(self.poly_lora_B, std=0.1)
        self.poly_router = site.empty(config.n_tasks, self.splits * self.skills)
        nn.init.uniform_(self.poly_router, -1e-3, 1e-3)

    def _weights(self, task_ids: Tensor | None) -> Tensor:
        """(batch, splits, skills)."""
        if task_ids is None:
            raise ConfigError("this method needs to know each row's task", where="forward", got="no task_ids",
                              expected="task_ids=tensor of (batch,)")  # fmt: skip
        logits = self.poly_router[task_ids.to(self.poly_router.device)].view(-1, self.splits, self.skills)
        if self.training:
            noise = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
            logits = logits + torch.log(noise) - torch.log1p(-noise)
        weights = torch.sigmoid(logits)
        return weights / (weights.sum(-1, keepdim=True) + 1e-12)

    def forward(self, inner: View, x: Any) -> Any:
        weights = self._weights(inner.given(self).get("task_ids"))
        # Splits choose their own mixture of rows of A and columns of B; the product then is one matrix of rank r.
        A = torch.einsum("bqs,qsdr->bqdr", weights, self.poly_lora_A).flatten(1, 2)
        B = torch.einsum("bqs,qsrd->brqd", weights, self.poly_lora_B).flatten(2)
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        added = (rows @ A @ B) / A.shape[-1]
        return inner(x) + added.reshape(*x.shape[:-1], -1)
